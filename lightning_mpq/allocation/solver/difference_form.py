"""The problem without its one-per-group equations: differences to a reference candidate of each group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .problem import Array, Indices, Mask, Problem

_CHUNK = 2**20
"""Entries of the curvature that are copied at once, so that building a form takes no more memory than the form."""


@dataclass(frozen=True, eq=False)
class DifferenceForm:
    r"""``f(t) = t'Qt/2 + c't + constant`` with ``t >= 0``, ``sum(t) <= 1`` in each block, and ``A t <= b``.

    In each group with more than one allowed candidate one is the reference; t marks the others, and t = 0
    means the reference. Writing :math:`x = e_{ref} + \sum_i t_i (e_i - e_{ref(i)})` in the problem gives Q, c.
    Blocks stand in the order of their lengths, so that those of one length are neighbours.

    Attributes:
        quadratic: Q, shape [n, n].
        linear: c, shape [n].
        constant: The objective at t = 0.
        rows: A, shape [m', n]: budgets that can bind.
        limits: b, shape [m'].
        candidate: Candidate of each variable, shape [n].
        block: Block of each variable, shape [n], ascending from 0.
        reference: Reference candidate of every group, shape [L].
        group: Group of each block.
        binding: Which of the problem's budgets the rows are.
    """

    quadratic: Array
    linear: Array
    constant: float
    rows: Array
    limits: Array
    candidate: Indices
    block: Indices
    reference: Indices
    group: Indices
    binding: Indices

    @property
    def size(self) -> int:
        """Number n of variables."""
        return len(self.candidate)

    @cached_property
    def start(self) -> Indices:
        """First variable of each block."""
        return np.searchsorted(self.block, np.arange(len(self.group)))

    @cached_property
    def own(self) -> Array:
        """What each variable adds to the objective alone, at t = 0: ``c + diag(Q) / 2``, shape [n]."""
        return self.linear + self.quadratic.diagonal() / 2

    def coordinates(self) -> DifferenceForm:
        """Return the form without its matrix: what its variables stand for, in little memory."""
        return replace(self, quadratic=np.zeros((0, 0)))

    def rest(self, point: Array) -> Array:
        """Return the mass that a point leaves to the reference of each block, at least 0."""
        return np.maximum(1 - np.add.reduceat(np.clip(point, 0, 1), self.start), 0)

    def selection(self, point: Array) -> Indices:
        """Round a point to the selection that takes the candidate of most mass in each group."""
        largest = np.maximum.reduceat(point, self.start)
        wins = np.flatnonzero(point == largest[self.block])
        best = np.full(len(self.group), -1)
        best[self.block[wins][::-1]] = wins[::-1]
        moved = largest > self.rest(point)
        chosen = self.reference.copy()
        chosen[self.group[moved]] = self.candidate[best[moved]]
        return chosen

    def sample(self, point: Array, random: np.random.Generator) -> Indices:
        """Draw a selection with the masses of a point as probabilities."""
        mass = np.clip(point, 0, 1)
        before = np.cumsum(mass)
        before = before - np.concatenate([[0.0], before])[self.start][self.block]
        total = np.add.reduceat(mass, self.start) + self.rest(point)
        drawn = random.random(len(self.group)) * total
        hit = np.flatnonzero((drawn[self.block] < before) & (drawn[self.block] >= before - mass))
        chosen = self.reference.copy()
        chosen[self.group[self.block[hit]]] = self.candidate[hit]
        return chosen


def difference_form(problem: Problem, allowed: Mask, reference: Indices | None = None) -> DifferenceForm:
    """Write the problem on the allowed candidates (at least one a group) as differences to a reference.

    Args:
        problem: What is solved.
        allowed: Candidates that may be chosen.
        reference: An allowed candidate of each group; the last allowed one by default.
    """
    kept = np.flatnonzero(allowed)
    if reference is None:
        reference = kept[np.append(problem.group[kept][1:] != problem.group[kept][:-1], True)]
    candidate = kept[kept != reference[problem.group[kept]]]
    length = np.bincount(problem.group[candidate], minlength=problem.group_count)
    candidate = candidate[np.lexsort((candidate, problem.group[candidate], length[problem.group[candidate]]))]
    base = reference[problem.group[candidate]]
    group = problem.group[candidate]
    first = np.append(True, group[1:] != group[:-1]) if len(group) else np.zeros(0, dtype=bool)
    potential = problem.potential(reference)
    rows = problem.rows[:, candidate] - problem.rows[:, base]
    limits = problem.limits - problem.rows[:, reference].sum(axis=1)
    binding = np.zeros(len(rows), dtype=bool)
    if len(candidate):
        most = np.maximum.reduceat(rows, np.flatnonzero(first), axis=1) if len(rows) else rows[:, :0]
        binding = np.maximum(most, 0).sum(axis=1) > limits
    return DifferenceForm(
        quadratic=_differences(problem.curvature, candidate, base),
        linear=potential[candidate] - potential[base],
        constant=problem.value(reference),
        rows=rows[binding],
        limits=limits[binding],
        candidate=candidate,
        block=np.cumsum(first) - 1,
        reference=reference,
        group=group[first],
        binding=np.flatnonzero(binding),
    )


def _differences(curvature: Array, candidate: Indices, base: Indices) -> Array:
    """Return ``(e_i - e_base(i))' G (e_j - e_base(j))`` for all i, j, a few rows at a time."""
    quadratic = np.empty((len(candidate), len(candidate)))
    step = max(1, _CHUNK // max(1, len(curvature)))
    for begin in range(0, len(candidate), step):
        part = slice(begin, begin + step)
        rows = curvature[candidate[part]]
        rows -= curvature[base[part]]
        np.subtract(rows[:, candidate], rows[:, base], out=quadratic[part])
    return quadratic
