"""Best-first branch and bound in which every node is convexified anew on the candidates it has left."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from .blocks import BlockStructure
from .clock import Clock
from .convexification import Convexification
from .difference_form import DifferenceForm, difference_form
from .eigenvalue_shift import ShiftedBound, eigenvalue_shift
from .enumeration import enumerate_selections
from .lagrangian import gilmore_lawler_bound
from .local_search import LocalSearch
from .newton_path import convexify, fits
from .problem import Array, Indices, Mask, Problem
from .separable import Start

_ENUMERABLE = 4096
"""So many selections are tried one by one instead of bounded."""
_ROUNDING = 1e-8
"""A conditional bound must exceed the cutoff by so much, relatively, before a candidate is dropped for it."""
_DROPPED = 0.15
"""A node that lost this share of its candidates is bounded again on the rest before it is split."""
_DECIMALS = 6
"""Relaxed solutions are rounded to so many decimals before anything is decided by them, so that the last bits of
another processor's or another number of threads' arithmetic decide nothing."""
_WARMER = 4.0
"""A child begins at so many times the mu its parent ended with."""


@dataclass(order=True)
class _Node:
    """A set of allowed candidates, a lower bound for every selection among them, and where to begin bounding it."""

    bound: float
    number: int
    allowed: Mask = field(compare=False)
    begin: tuple[DifferenceForm, Start] | None = field(compare=False, default=None)


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
        clock: Asked between nodes, Newton steps and moves of the local search.
        bound: A lower bound that is known.
        known: Value of a policy found elsewhere: only better ones are looked for.
        target: A selection of at most this value, or the proof that there is none, ends the search.
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
        clock: Clock,
        bound: float = -np.inf,
        known: float = np.inf,
        target: float = -np.inf,
    ) -> None:
        """Put the root on the heap; `run` does the work."""
        self.problem = problem
        self.gap, self.reference = gap, reference
        self.known, self.target = known, target
        self.random = random
        self.clock = clock
        clock.learn(problem.curvature)
        self.selection, self.value = selection, problem.value(selection)
        self.closed = np.inf
        self.nodes = 0
        self.exhausted = False
        self.prices: Array | None = None
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

    def is_settled(self) -> bool:
        """Return whether nothing is left to be done."""
        decided = self.value <= self.target or self.bound > self.target > -np.inf
        return decided or min(self.value, self.known) - self.bound <= self.tolerance

    def run(self, max_nodes: int | None = None) -> None:
        """Work until the gap is within tolerance, the time is up, or so many nodes are done."""
        done = 0
        while self._heap and not self.is_settled():
            if self.exhausted or self.clock.out_of_time() or (max_nodes is not None and done >= max_nodes):
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

    def _push(self, bound: float, allowed: Mask, begin: tuple[DifferenceForm, Start] | None) -> None:
        heapq.heappush(self._heap, _Node(bound, self._count, allowed, begin))
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
        found, size = None, int(allowed.sum()) - self.problem.group_count
        # One factorisation may be in time where the many of a central path are not.
        if node.begin is None and self.clock.fits(float(size) ** 3 / 2) and self._shift(node, allowed):
            return
        if fits(size, self.clock):
            form = difference_form(self.problem, allowed, self._reference(allowed))
            found = self._convexify(form, node)
        if found is None:
            self.exhausted = True
            self._push(max(node.bound, gilmore_lawler_bound(self.problem, allowed)), allowed, node.begin)
            return
        if self.prices is None:
            self.prices = np.zeros(len(self.problem.limits))
            self.prices[form.binding] = found.last.multipliers
        bound = max(node.bound, found.bound)
        if bound >= self.cutoff:
            self._close(bound)
            return
        point = np.round(found.point, _DECIMALS)
        self._round(form, point, allowed)
        survivors = self._screen(form, found, allowed)
        if survivors is None:
            return
        begin = (form.coordinates(), found.last)
        dropped = 1 - survivors.sum() / allowed.sum()
        if dropped > _DROPPED or self._combinations(survivors) <= _ENUMERABLE:
            self._push(bound, survivors, begin)
            return
        self._split(form, found, point, survivors, bound)

    def _shift(self, node: _Node, allowed: Mask) -> bool:
        """Bound a node, and drop candidates, by the cheap bound; return whether that changed enough to look again."""
        form = difference_form(self.problem, allowed, self._reference(allowed))
        found = eigenvalue_shift(form, self.clock, max(abs(self.value), self.reference), self.cutoff)
        if found is None:
            return False
        node.bound = max(node.bound, found.bound)
        if node.bound >= self.cutoff:
            self._close(node.bound)
            return True
        survivors = self._screen(form, found, allowed)
        if survivors is not None and 1 - survivors.sum() / allowed.sum() > _DROPPED:
            self._push(node.bound, survivors, None)
        return survivors is None or 1 - survivors.sum() / allowed.sum() > _DROPPED

    def _reference(self, allowed: Mask) -> Indices:
        """Return for each group the allowed candidate that is nearest to the incumbent's."""
        kept = np.flatnonzero(allowed)
        group = self.problem.group[kept]
        order = np.lexsort((kept, np.abs(kept - self.selection[group]), group))
        return kept[order][np.searchsorted(group, np.arange(self.problem.group_count))]

    def _convexify(self, form: DifferenceForm, node: _Node) -> Convexification | None:
        """Bound a node by the best convexification that there is time for; None if there is none for any."""
        scale = max(abs(self.value), self.reference)
        tolerance = max(self.tolerance / 8, 1e-7 * scale)
        return convexify(
            form,
            self.clock,
            cutoff=self.cutoff,
            tolerance=tolerance,
            enough_dropped=_DROPPED,
            begin=node.begin,
        )

    def _combinations(self, allowed: Mask) -> int:
        counts = np.bincount(self.problem.group[allowed], minlength=self.problem.group_count)
        return prod(counts.tolist())

    def _enumerate(self, allowed: Mask) -> bool:
        """Settle a node by trying every selection, if there are few; return whether that was done."""
        if self._combinations(allowed) > _ENUMERABLE:
            return False
        selection, value = enumerate_selections(self.problem, allowed)
        if selection is not None:
            self.offer(selection)
            self._close(value)
        return True

    def _screen(self, form: DifferenceForm, found: Convexification | ShiftedBound, allowed: Mask) -> Mask | None:
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
        draws = 10 if self.nodes == 1 else 1
        search = LocalSearch(self.problem, allowed, self.clock.out_of_time)
        for draw in range(draws + 1):
            search.move_to(form.selection(point) if draw == 0 else form.sample(point, self.random))
            if search.repair():
                search.descend()
                self.offer(search.selection)
            if self.clock.out_of_time():
                break

    def _split(self, form: DifferenceForm, found: Convexification, point: Array, allowed: Mask, bound: float) -> None:
        r"""Split the group of largest :math:`\langle P_l, Diag(t_l) - t_l t_l^T \rangle / 2` at half of its mass.

        That term is what the shift by P adds at a fractional t and does not at an integer one: the larger
        it is, the more of the bound hangs on this group.
        """
        point = np.clip(point, 0, 1)
        structure = BlockStructure(form.block)
        shift = [own - left for own, left in zip(structure.gather(form.quadratic), found.last.hessian, strict=True)]
        spread = point * (structure.diagonal(shift) - structure.times(shift, point))
        gain = np.add.reduceat(spread, form.start)
        alive = np.bincount(self.problem.group[allowed], minlength=self.problem.group_count)[form.group]
        rest = form.rest(point)
        largest = np.maximum(rest, np.maximum.reduceat(point, form.start))
        score = np.where(alive > 1, gain / 2 + 1e-9 * abs(self.value) * (1 - largest), -np.inf)
        block = int(score.argmax())
        mass = np.zeros(len(self.problem.group))
        mass[form.candidate] = point
        mass[form.reference[form.group[block]]] = float(rest[block])
        members = np.flatnonzero(allowed & (self.problem.group == form.group[block]))
        cumulative = np.cumsum(mass[members]) / max(float(mass[members].sum()), 1e-300)
        cut = int(np.abs(cumulative[:-1] - 0.5).argmin()) + 1
        begin = (form.coordinates(), replace(found.last, mu=_WARMER * found.last.mu))
        for part in (members[:cut], members[cut:]):
            child = allowed.copy()
            child[members] = False
            child[part] = True
            self._push(bound, child, begin)
