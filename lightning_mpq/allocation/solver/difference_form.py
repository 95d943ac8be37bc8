"""The problem without its one-per-group equations: differences to a reference candidate of each group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .problem import Array, Indices, Mask, Problem


@dataclass(frozen=True, eq=False)
class DifferenceForm:
    r"""``f(t) = t'Qt/2 + c't + constant`` with ``t >= 0``, ``sum(t) <= 1`` in each block, and ``A t <= b``.

    In each group with more than one allowed candidate one is the reference; t marks the others, and t = 0
    means the reference. Writing :math:`x = e_{ref} + \sum_i t_i (e_i - e_{ref(i)})` in the problem gives Q, c.

    Attributes:
        quadratic: Q, shape [n, n].
        linear: c, shape [n].
        constant: The objective at t = 0.
        rows: A, shape [m', n]: budgets that can bind.
        limits: b, shape [m'].
        candidate: Candidate behind each variable, shape [n].
        block: Block of each variable, shape [n], from 0.
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

    def blocks(self) -> list[Indices]:
        """Return, for each block length, the variables of the blocks of that length, shape [blocks, length]."""
        lengths = np.bincount(self.block)
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        return [starts[lengths == length][:, None] + np.arange(length) for length in np.unique(lengths[lengths > 0])]

    def selection(self, point: Array) -> Indices:
        """Round a point to the selection that takes the candidate of most mass in each group."""
        chosen = self.reference.copy()
        rest = 1 - np.bincount(self.block, weights=point, minlength=len(self.group))
        for block, group in enumerate(self.group):
            variables = np.flatnonzero(self.block == block)
            best = variables[point[variables].argmax()]
            if point[best] > rest[block]:
                chosen[group] = self.candidate[best]
        return chosen

    def sample(self, point: Array, random: np.random.Generator) -> Indices:
        """Draw a selection with the masses of a point as probabilities."""
        chosen = self.reference.copy()
        for block, group in enumerate(self.group):
            variables = np.flatnonzero(self.block == block)
            mass = np.clip(point[variables], 0, 1)
            mass = np.append(mass, max(0.0, 1 - mass.sum()))
            drawn = int(random.choice(len(mass), p=mass / mass.sum()))
            if drawn < len(variables):
                chosen[group] = self.candidate[variables[drawn]]
        return chosen


def difference_form(problem: Problem, allowed: Mask) -> DifferenceForm:
    """Write the problem on the allowed candidates (at least one a group) as differences to the last of each group."""
    kept = np.flatnonzero(allowed)
    last = np.append(problem.group[kept][1:] != problem.group[kept][:-1], True)
    reference = kept[last]
    candidate = kept[~last]
    base = reference[problem.group[candidate]]
    G = problem.curvature
    at_candidate, at_base = G[candidate], G[base]
    quadratic = at_candidate[:, candidate] - at_candidate[:, base] - at_base[:, candidate] + at_base[:, base]
    potential = G[:, reference].sum(axis=1) + problem.gradient
    rows = problem.rows[:, candidate] - problem.rows[:, base]
    limits = problem.limits - problem.rows[:, reference].sum(axis=1)
    group, block = np.unique(problem.group[candidate], return_inverse=True)
    binding = np.zeros(len(rows), dtype=bool)
    if len(candidate):
        starts = np.searchsorted(block, np.arange(len(group)))
        binding = np.maximum(np.maximum.reduceat(rows, starts, axis=1), 0).sum(axis=1) > limits
    return DifferenceForm(
        quadratic=(quadratic + quadratic.T) / 2,
        linear=potential[candidate] - potential[base],
        constant=problem.value(reference),
        rows=rows[binding],
        limits=limits[binding],
        candidate=candidate,
        block=block.astype(np.int64),
        reference=reference,
        group=group,
        binding=np.flatnonzero(binding),
    )
