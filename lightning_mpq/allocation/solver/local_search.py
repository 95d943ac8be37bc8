"""The incumbent: 1-opt and 2-opt moves with perturbation, from a Lagrangian start; feasible at all times."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .lagrangian import lagrangian
from .problem import Array, Indices, Mask, Problem

_SHORTLIST = 110
"""Moves of each kind that pairs are made of where there are too many to try all: the square of it is tried."""
_RELATIVE_GAIN = 1e-12
"""Less of a gain may be rounding, and could lead in circles."""


class LocalSearch:
    """A selection and its neighbours, with ``h = G x + a`` kept up to date.

    With h at hand the change of the objective under any single move costs O(1), under any pair O(1)
    more, and an accepted move O(K).

    Args:
        problem: What is searched.
        allowed: Candidates that may be chosen; all by default.
        out_of_time: Asked between moves; a search that is out of time keeps its feasible selection.
    """

    def __init__(
        self, problem: Problem, allowed: Mask | None = None, out_of_time: Callable[[], bool] = lambda: False
    ) -> None:
        """Start without a selection: `move_to` sets one."""
        self.problem = problem
        self.allowed = np.ones(len(problem.group), dtype=bool) if allowed is None else allowed
        self.out_of_time = out_of_time

    def move_to(self, selection: Indices) -> None:
        """Take a selection, feasible or not, and compute its state from scratch."""
        self.selection = selection.copy()
        self.potential = self.problem.potential(selection)
        self.used = self.problem.usage(selection)
        self.value = self.problem.value(selection)

    def changes(self) -> Array:
        """Return the change of the objective if each candidate replaced its group's choice, shape [K]."""
        problem = self.problem
        current = self.selection[problem.group]
        step = self.potential - self.potential[current]
        own = problem.curvature[np.arange(len(current)), current]
        return step + (problem.diagonal + problem.diagonal[current]) / 2 - own

    def use_changes(self) -> Array:
        """Return the change of each budget's use if each candidate replaced its group's choice, shape [m, K]."""
        return self.problem.rows - self.problem.rows[:, self.selection[self.problem.group]]

    def replace(self, candidate: int) -> None:
        """Let a candidate replace the choice of its group."""
        group = int(self.problem.group[candidate])
        previous = int(self.selection[group])
        own = self.problem.diagonal[candidate] + self.problem.diagonal[previous]
        step = self.potential[candidate] - self.potential[previous]
        self.value += float(step + own / 2 - self.problem.curvature[candidate, previous])
        self.potential += self.problem.curvature[candidate] - self.problem.curvature[previous]
        self.used = self.used + self.problem.rows[:, candidate] - self.problem.rows[:, previous]
        self.selection[group] = candidate

    def repair(self) -> bool:
        """Move towards the budgets, dearest violation first, at the least loss per unit freed.

        Returns:
            Whether every budget holds now; with several budgets this may fail although a policy exists.
        """
        limits = self.problem.limits
        for _ in range(4 * len(self.problem.group) + 4):
            excess = (self.used - limits) / np.maximum(np.abs(limits), 1e-300)
            if not (excess > 0).any():
                return self.problem.is_feasible(self.selection)
            row = int(excess.argmax())
            freed = -self.use_changes()[row]
            change = self.changes()
            useful = (freed > 0) & self.allowed
            if not useful.any():
                return False
            price = np.where(useful, np.where(change > 0, change, 0) / np.where(useful, freed, 1), np.inf)
            # Of equally good moves the one that frees most, so that free moves cannot go round in circles.
            best = np.flatnonzero(price <= price.min())
            self.replace(int(best[freed[best].argmax()]))
        return False

    def descend(self) -> float:
        """Take the best improving single move, else the best improving pair of moves, until none is left."""
        tolerance = _RELATIVE_GAIN * max(abs(self.value), float(np.abs(self.potential).max()), 1e-300)
        while not self.out_of_time():
            change, use = self.changes(), self.use_changes()
            slack = self.problem.limits - self.used
            movable = self.allowed.copy()
            movable[self.selection] = False
            single = np.where(movable & (use <= slack[:, None]).all(axis=0), change, np.inf)
            best = int(single.argmin())
            if single[best] < -tolerance:
                self.replace(best)
                continue
            pair = self._best_pair(change, use, slack, np.flatnonzero(movable), -tolerance)
            if pair is None:
                break
            for candidate in pair:
                self.replace(candidate)
        return self.value

    def _best_pair(
        self, change: Array, use: Array, slack: Array, movable: Indices, threshold: float
    ) -> tuple[int, int] | None:
        """Return the two moves in different groups that together gain most, if they gain beyond a threshold.

        All pairs are tried while there are few moves; else those of the moves that look best alone, per
        unit of budget freed, and per unit of budget taken.
        """
        if len(movable) < 2:
            return None
        if len(movable) > 3 * _SHORTLIST:
            pooled = (use[:, movable] / np.maximum(np.abs(self.problem.limits), 1e-300)[:, None]).sum(axis=0)
            gain = change[movable]
            freeing = np.where(pooled < 0, gain / np.where(pooled < 0, -pooled, 1), np.inf)
            taking = np.where(pooled > 0, gain / np.where(pooled > 0, pooled, 1), np.inf)
            listed = [np.argsort(score, kind="stable")[:_SHORTLIST] for score in (gain, freeing, taking)]
            movable = movable[np.unique(np.concatenate(listed))]
        problem = self.problem
        cross = _interactions(problem, movable, self.selection[problem.group[movable]])
        gain = change[movable][:, None] + change[movable][None, :] + cross
        blocked = problem.group[movable][:, None] == problem.group[movable][None, :]
        for taken, left in zip(use[:, movable], slack, strict=True):
            blocked |= taken[:, None] + taken[None, :] > left
        gain[blocked] = np.inf
        first, second = divmod(int(gain.argmin()), len(movable))
        return (int(movable[first]), int(movable[second])) if gain[first, second] < threshold else None

    def perturb(self, random: np.random.Generator) -> bool:
        """Move a few random groups to a neighbouring candidate and repair; return whether that is feasible."""
        groups = self.problem.group_count
        count = int(random.integers(1, max(2, min(12, groups // 4) + 1)))
        for group in random.choice(groups, size=min(count, groups), replace=False):
            here = int(self.selection[group])
            there = here + int(random.choice((-1, 1)))
            inside = 0 <= there < len(self.problem.group) and self.problem.group[there] == group
            if inside and self.allowed[there]:
                self.replace(there)
        return self.repair()


def _interactions(problem: Problem, there: Indices, here: Indices) -> Array:
    """Return what two moves from ``here`` to ``there`` change together beyond what each changes alone."""
    G = problem.curvature
    mixed = G[np.ix_(there, here)]
    return G[np.ix_(there, there)] - mixed - mixed.T + G[np.ix_(here, here)]


def first_selection(problem: Problem, allowed: Mask, search: LocalSearch) -> Indices | None:
    """Return a feasible selection from the Lagrangian of the additive part, repaired; None if that fails."""
    selection, _, _ = lagrangian(problem, problem.additive_cost, allowed)
    for attempt in (selection, lagrangian(problem, np.zeros_like(problem.gradient), allowed)[0]):
        search.move_to(attempt)
        if search.repair():
            return search.selection.copy()
    return None


def iterated_local_search(
    search: LocalSearch, start: Indices, random: np.random.Generator, kicks: int
) -> tuple[Indices, float]:
    """Descend, then perturb the best selection and descend again; stop after ``kicks`` kicks in vain.

    The number of kicks, not the clock, ends the search, so that a seed decides the result.
    """
    search.move_to(start)
    search.descend()
    best, value = search.selection.copy(), search.problem.value(search.selection)
    vain = 0
    while vain < kicks and not search.out_of_time():
        search.move_to(best)
        vain += 1
        if not search.perturb(random):
            continue
        search.descend()
        if search.value < value - 1e-10 * max(abs(value), 1e-300) and search.problem.is_feasible(search.selection):
            best, value, vain = search.selection.copy(), search.problem.value(search.selection), 0
    return best, value


def break_ties(
    problem: Problem, selection: Indices, allowed: Mask, tolerance: float, out_of_time: Callable[[], bool]
) -> Indices:
    """Exchange choices for equally good ones of fewer bytes, then for earlier ones, one and two at a time.

    Args:
        problem: What is solved.
        selection: A feasible selection.
        allowed: Candidates that may be chosen.
        tolerance: Values that differ by no more count as equal.
        out_of_time: Asked between exchanges.
    """
    search = LocalSearch(problem, allowed)
    search.move_to(selection)
    floor = search.value + tolerance
    for _ in range(4 * len(problem.group)):
        if out_of_time():
            break
        change, use = search.changes(), search.use_changes()
        slack = problem.limits - search.used
        current = search.selection[problem.group]
        size = problem.size - problem.size[current]
        earlier = np.arange(len(problem.group)) - current
        better = (size < 0) | ((size == 0) & (earlier < 0))
        equal = allowed & better & (change <= floor - search.value) & (use <= slack[:, None]).all(axis=0)
        if equal.any():
            candidates = np.flatnonzero(equal)
            order = np.lexsort((candidates, size[candidates]))
            search.replace(int(candidates[order[0]]))
            continue
        swap = _tied_swap(search, change, use, slack, floor - search.value)
        if swap is None:
            break
        for candidate in swap:
            search.replace(candidate)
    return search.selection


def _tied_swap(
    search: LocalSearch, change: Array, use: Array, slack: Array, tolerance: float
) -> tuple[int, int] | None:
    """Return two moves that together change nothing but lower the bytes, or lower the first group's candidate."""
    problem = search.problem
    movable = np.flatnonzero(search.allowed)
    movable = movable[~np.isin(movable, search.selection)]
    if not 2 <= len(movable) <= 600:
        return None
    current = search.selection[problem.group[movable]]
    cross = _interactions(problem, movable, current)
    total = change[movable][:, None] + change[movable][None, :] + cross
    size = (problem.size[movable] - problem.size[current])[:, None] + (problem.size[movable] - problem.size[current])
    lowers = (movable < current)[:, None]
    fits = problem.group[movable][:, None] < problem.group[movable][None, :]
    for taken, left in zip(use[:, movable], slack, strict=True):
        fits &= taken[:, None] + taken[None, :] <= left
    tied = fits & (total <= tolerance) & ((size < 0) | ((size == 0) & lowers))
    if not tied.any():
        return None
    first, second = divmod(int(np.where(tied, size, np.inf).argmin()), len(movable))
    return int(movable[first]), int(movable[second])
