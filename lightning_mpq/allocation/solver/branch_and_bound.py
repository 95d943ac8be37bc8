"""Best-first branch and bound in which every node is convexified anew on the candidates it has left."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .block_ascent import block_ascent
from .convexification import Convexification, unknowns
from .difference_form import DifferenceForm, difference_form
from .enumeration import enumerate_selections
from .lagrangian import gilmore_lawler_bound
from .local_search import LocalSearch
from .primal_dual import convexify
from .problem import Array, Indices, Mask, Problem

_ENUMERABLE = 4096
"""So many selections are tried one by one instead of bounded."""
_MOST_VARIABLES = 2500
"""Beyond this a node has no more than the bound of `gilmore_lawler_bound`: others need dense matrices."""
_ROUNDING = 1e-8
"""A conditional bound must exceed the cutoff by so much, relatively, before a candidate is dropped for it."""


@dataclass(order=True)
class _Node:
    """A set of allowed candidates, and a lower bound for every selection among them."""

    bound: float
    number: int
    allowed: Mask = field(compare=False)


class BranchAndBound:
    """Search that can be looked at, and stopped, between nodes.

    Nodes are subsets of candidates. A node is bounded by its own convexification, whose conditional
    bounds also drop candidates; it is split in two by the widths of one group. What is dropped or closed
    can be no better than the cutoff, so the proved bound is the least of all open and all closed nodes.

    Args:
        problem: What is solved.
        allowed: Candidates of the root.
        selection: A feasible selection to start from.
        gap: Relative gap that is good enough, of ``max(|value|, reference)``.
        reference: See ``gap``.
        random: Draws the roundings.
        out_of_time: Asked between nodes and moves of the local search.
        late: Asked between steps of a bound, so that time is left to round what it found.
        bound: A lower bound that is known.
        known: Value of a plan found elsewhere: only better ones are looked for.
        target: A selection of at most this value, or the proof that there is none, ends the search.
        max_unknowns: Convexifications with more unknowns are left to block ascent.
    """

    def __init__(
        self,
        problem: Problem,
        allowed: Mask,
        selection: Indices,
        *,
        gap: float,
        reference: float = 0.0,
        random: np.random.Generator,
        out_of_time: Callable[[], bool] = lambda: False,
        late: Callable[[], bool] | None = None,
        bound: float = -np.inf,
        max_unknowns: int = 6000,
        known: float = np.inf,
        target: float = -np.inf,
    ) -> None:
        """Put the root on the heap; `run` does the work."""
        self.problem = problem
        self.gap, self.reference = gap, reference
        self.max_unknowns = max_unknowns
        self.known, self.target = known, target
        self.random = random
        self.out_of_time = out_of_time
        self.late = late or out_of_time
        self.selection, self.value = selection, problem.value(selection)
        self.closed = np.inf
        self.nodes = 0
        self.root: Convexification | None = None
        self.root_form: DifferenceForm | None = None
        self._heap = [_Node(bound, 0, allowed)]
        self._count = 1

    @property
    def bound(self) -> float:
        """What is proved so far: no selection among the root's candidates is better."""
        open_nodes = self._heap[0].bound if self._heap else np.inf
        return min(open_nodes, self.closed, self.value)

    @property
    def tolerance(self) -> float:
        """Absolute gap that is good enough at the present incumbent."""
        return self.gap * max(abs(self.value), self.reference)

    @property
    def cutoff(self) -> float:
        """Selections that are no better than this need not be looked for."""
        return min(self.value, self.known) - 0.9 * self.tolerance

    def is_settled(self, bound: float = -np.inf) -> bool:
        """Return whether nothing is left to be done, given another lower bound as well."""
        bound = max(bound, self.bound)
        decided = self.value <= self.target or bound > self.target > -np.inf
        return decided or min(self.value, self.known) - bound <= self.tolerance

    def survivors(self) -> Mask:
        """Return the candidates that some open node still has."""
        alive = np.zeros(len(self.problem.group), dtype=bool)
        for node in self._heap:
            alive |= node.allowed
        return alive

    def run(self, max_nodes: int | None = None) -> None:
        """Work until the gap is within tolerance, the time is up, or so many nodes are done."""
        done = 0
        while self._heap and not self.is_settled():
            if self.out_of_time() or (max_nodes is not None and done >= max_nodes):
                break
            self._expand(heapq.heappop(self._heap))
            done += 1

    def offer(self, selection: Indices) -> None:
        """Take a selection as incumbent if it is feasible and better."""
        value = self.problem.value(selection)
        if value < self.value and self.problem.is_feasible(selection):
            self.selection, self.value = selection.copy(), value

    def _close(self, bound: float) -> None:
        """Note that nothing below a bound was thrown away."""
        self.closed = min(self.closed, bound)

    def _push(self, bound: float, allowed: Mask) -> None:
        heapq.heappush(self._heap, _Node(bound, self._count, allowed))
        self._count += 1

    def _expand(self, node: _Node) -> None:
        """Bound a node, drop candidates, round, and split what is left."""
        self.nodes += 1
        if node.bound >= self.cutoff:
            self._close(node.bound)
            return
        allowed = self.problem.drop_unaffordable(node.allowed)
        if allowed is None:
            return
        if self._enumerate(allowed):
            return
        form = difference_form(self.problem, allowed)
        if form.size > _MOST_VARIABLES:
            self._close(max(node.bound, gilmore_lawler_bound(self.problem, allowed)))
            return
        found = self._convexify(form)
        if self.root is None:
            self.root, self.root_form = found, form
        bound = max(node.bound, found.bound)
        if not np.isfinite(bound):
            bound = gilmore_lawler_bound(self.problem, allowed)
        if bound >= self.cutoff:
            self._close(bound)
            return
        self._round(form, found.point, allowed)
        survivors = self._screen(form, found, allowed)
        if survivors is None:
            return
        if unknowns(form) > self.max_unknowns >= unknowns(difference_form(self.problem, survivors)):
            self._push(bound, survivors)
            return
        dropped = 1 - survivors.sum() / allowed.sum()
        if dropped > 0.2 or self._combinations(survivors) <= _ENUMERABLE:
            self._push(bound, survivors)
            return
        self._split(form, found, survivors, bound)

    def _convexify(self, form: DifferenceForm) -> Convexification:
        """Bound a node by the best convexification, or by a good one where that would take too long."""
        if unknowns(form) <= self.max_unknowns:
            return convexify(form, cutoff=self.cutoff, tolerance=self.tolerance / 4, out_of_time=self.late)
        scale = max(abs(self.value), self.reference)
        return block_ascent(form, scale=scale, cutoff=self.cutoff, out_of_time=self.late)

    def _combinations(self, allowed: Mask) -> float:
        counts = np.bincount(self.problem.group[allowed], minlength=self.problem.group_count)
        return float(np.prod(counts.astype(float)))

    def _enumerate(self, allowed: Mask) -> bool:
        """Settle a node by trying every selection, if there are few; return whether that was done."""
        if self._combinations(allowed) > _ENUMERABLE:
            return False
        selection, value = enumerate_selections(self.problem, allowed)
        if selection is not None:
            self.offer(selection)
            self._close(value)
        return True

    def _screen(self, form: DifferenceForm, found: Convexification, allowed: Mask) -> Mask | None:
        """Drop candidates whose conditional bound reaches the cutoff; None if a group lost all of its own."""
        survivors = allowed.copy()
        cutoff = self.cutoff
        beyond = cutoff + _ROUNDING * max(abs(self.value), self.reference)
        survivors[form.candidate[found.conditional >= beyond]] = False
        survivors[form.reference[form.group[found.reference_conditional >= beyond]]] = False
        if (survivors != allowed).any():
            self._close(cutoff)
        alive = np.bincount(self.problem.group[survivors], minlength=self.problem.group_count)
        return survivors if alive.all() else None

    def _round(self, form: DifferenceForm, point: Array, allowed: Mask) -> None:
        """Look for a better selection around the relaxed solution: nearest and a few random roundings."""
        draws = 30 if self.nodes == 1 else 1
        search = LocalSearch(self.problem, allowed, self.out_of_time)
        for draw in range(draws + 1):
            search.move_to(form.selection(point) if draw == 0 else form.sample(point, self.random))
            if search.repair():
                search.descend()
                self.offer(search.selection)
            if self.out_of_time():
                break

    def _split(self, form: DifferenceForm, found: Convexification, allowed: Mask, bound: float) -> None:
        r"""Split the group of largest :math:`\langle P_l, Diag(t_l) - t_l t_l^T \rangle / 2` at half of its mass.

        That term is what the shift by P adds at a fractional t and does not at an integer one: the larger
        it is, the more of the bound hangs on this group.
        """
        point = np.clip(found.point, 0, 1)
        shifted = np.where(form.block[:, None] == form.block[None, :], found.shift, 0) @ point
        gain = np.bincount(form.block, weights=point * (found.shift.diagonal() - shifted), minlength=len(form.group))
        alive = np.bincount(self.problem.group[allowed], minlength=self.problem.group_count)[form.group]
        rest = 1 - np.bincount(form.block, weights=point, minlength=len(form.group))
        largest = np.maximum(rest, 0)
        np.maximum.at(largest, form.block, point)
        score = np.where(alive > 1, gain / 2 + 1e-9 * abs(self.value) * (1 - largest), -np.inf)
        block = int(score.argmax())
        if not np.isfinite(score[block]):
            self._push(bound, allowed)
            return
        mass = np.zeros(len(self.problem.group))
        mass[form.candidate] = point
        mass[form.reference[form.group[block]]] = max(float(rest[block]), 0.0)
        members = np.flatnonzero(allowed & (self.problem.group == form.group[block]))
        cumulative = np.cumsum(mass[members]) / max(float(mass[members].sum()), 1e-300)
        cut = int(np.abs(cumulative[:-1] - 0.5).argmin()) + 1
        for part in (members[:cut], members[cut:]):
            child = allowed.copy()
            child[members] = False
            child[part] = True
            self._push(bound, child)
