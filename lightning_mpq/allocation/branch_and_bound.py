"""Best-first branch and bound in which every node is convexified anew on the candidates it has left."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .convexification import Convexification, convexify
from .difference_form import DifferenceForm, difference_form
from .enumeration import enumerate_selections
from .lagrangian import gilmore_lawler_bound
from .local_search import LocalSearch
from .problem import Array, Indices, Mask, Problem

_ENUMERABLE = 4096


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
        tolerance: Absolute gap that is good enough.
        random: Draws the roundings.
        out_of_time: Asked between nodes and Newton steps.
    """

    def __init__(
        self,
        problem: Problem,
        allowed: Mask,
        selection: Indices,
        *,
        tolerance: float,
        random: np.random.Generator,
        out_of_time: Callable[[], bool] = lambda: False,
        bound: float = -np.inf,
    ) -> None:
        """Put the root on the heap; `run` does the work."""
        self.problem = problem
        self.tolerance = tolerance
        self.random = random
        self.out_of_time = out_of_time
        self.selection, self.value = selection, problem.value(selection)
        self.closed = np.inf
        self.nodes = 0
        self.root: Convexification | None = None
        self.root_form: DifferenceForm | None = None
        self._search = LocalSearch(problem, out_of_time=out_of_time)
        self._heap = [_Node(bound, 0, allowed)]
        self._count = 1

    @property
    def bound(self) -> float:
        """What is proved so far: no selection among the root's candidates is better."""
        open_nodes = self._heap[0].bound if self._heap else np.inf
        return min(open_nodes, self.closed, self.value)

    @property
    def cutoff(self) -> float:
        """Selections that are no better than this need not be looked for."""
        return self.value - 0.9 * self.tolerance

    def survivors(self) -> Mask:
        """Return the candidates that some open node still has."""
        alive = np.zeros(len(self.problem.group), dtype=bool)
        for node in self._heap:
            alive |= node.allowed
        return alive

    def run(self, max_nodes: int | None = None) -> None:
        """Work until the gap is within tolerance, the time is up, or so many nodes are done."""
        done = 0
        while self._heap and self.value - self.bound > self.tolerance:
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
        found = convexify(form, cutoff=self.cutoff, tolerance=self.tolerance / 4, out_of_time=self.out_of_time)
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
        dropped = 1 - survivors.sum() / allowed.sum()
        if dropped > 0.2 or self._combinations(survivors) <= _ENUMERABLE:
            self._push(bound, survivors)
            return
        self._split(form, found, survivors, bound)

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
        survivors[form.candidate[found.conditional >= cutoff]] = False
        survivors[form.reference[form.group[found.reference_conditional >= cutoff]]] = False
        if (survivors != allowed).any():
            self._close(cutoff)
        alive = np.bincount(self.problem.group[survivors], minlength=self.problem.group_count)
        return survivors if alive.all() else None

    def _round(self, form: DifferenceForm, point: Array, allowed: Mask) -> None:
        """Look for a better selection around the relaxed solution: nearest and a few random roundings."""
        draws = 30 if self.nodes == 1 else 1
        for draw in range(draws + 1):
            self._search.move_to(form.selection(point) if draw == 0 else form.sample(point, self.random))
            if self._search.repair():
                self._search.descend()
                self.offer(self._search.selection)
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
