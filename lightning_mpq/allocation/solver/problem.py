"""The allocation problem on plain arrays: what the engine sees, free of models, schemes and names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Problem:
    r"""A multiple-choice quadratic knapsack over K candidates in L groups.

    .. math:: \min_x\; a^T x + \tfrac12 x^T G x \quad\text{s.t.}\quad
              \sum_{i \in C_l} x_i = 1\ (l = 1..L),\quad R x \le r,\quad x \in \{0, 1\}^K

    A *selection* is the integer array [L] of the chosen candidate of each group.

    Attributes:
        gradient: a, shape [K].
        curvature: G, shape [K, K], symmetric.
        group: Group of each candidate, shape [K], ascending from 0 without holes.
        rows: R, shape [m, K], one budget a row; whole numbers below 2**53 are summed exactly.
        limits: r, shape [m]; a row holds if its sum is at most the limit, with no tolerance.
        size: What ties break towards (stored bits), shape [K].
    """

    gradient: Array
    curvature: Array
    group: Indices
    rows: Array
    limits: Array
    size: Array

    @cached_property
    def group_count(self) -> int:
        """L, the number of groups."""
        return int(self.group[-1]) + 1 if len(self.group) else 0

    @cached_property
    def start(self) -> Indices:
        """First candidate of each group, shape [L]."""
        return np.searchsorted(self.group, np.arange(self.group_count))

    @cached_property
    def by_size(self) -> Indices:
        """Candidates in the order of groups, in each group by size, equal ones as they stand."""
        return np.lexsort((np.arange(len(self.group)), self.size, self.group))

    @cached_property
    def diagonal(self) -> Array:
        """Diagonal of the curvature, shape [K]."""
        return np.ascontiguousarray(self.curvature.diagonal())

    @cached_property
    def additive_cost(self) -> Array:
        """What each candidate costs alone, ``a + diag(G) / 2``, shape [K]."""
        return self.gradient + self.diagonal / 2

    @cached_property
    def without_pairs(self) -> Problem:
        """The problem in which no two candidates interact, at the cost that each has alone."""
        nothing: Array = np.broadcast_to(0.0, self.curvature.shape)
        return replace(self, gradient=self.additive_cost, curvature=nothing)

    @cached_property
    def is_additive(self) -> bool:
        """Whether no two candidates of different groups interact."""
        end = np.append(self.start[1:], len(self.group))
        inside = sum(np.count_nonzero(self.curvature[a:b, a:b]) for a, b in zip(self.start, end, strict=True))
        return bool(np.count_nonzero(self.curvature) == inside)

    def value(self, selection: Indices) -> float:
        """Return the objective of a selection."""
        block = self.curvature[np.ix_(selection, selection)]
        return float(self.gradient[selection].sum() + block.sum() / 2)

    def potential(self, selection: Indices) -> Array:
        """Return ``G x + a`` of a selection, shape [K]."""
        potential = self.gradient.copy()
        for chosen in selection:
            potential += self.curvature[chosen]
        return potential

    def usage(self, selection: Indices) -> Array:
        """Return what a selection takes of each budget, shape [m]."""
        taken: Array = self.rows[:, selection].sum(axis=1)
        return taken

    def is_feasible(self, selection: Indices) -> bool:
        """Return whether a selection keeps every budget."""
        return bool(np.all(self.usage(selection) <= self.limits))

    def least(self, values: Array, allowed: Mask | None = None) -> Array:
        """Return the smallest of ``values`` ([K] or [m, K]) in each group, over the allowed candidates."""
        kept = values if allowed is None else np.where(allowed, values, np.inf)
        smallest: Array = np.minimum.reduceat(kept, self.start, axis=-1)
        return smallest

    def only(self, allowed: Mask) -> tuple[Problem, Indices]:
        """Return the problem on the allowed candidates (at least one a group), and which those are."""
        kept = np.flatnonzero(allowed)
        return (
            Problem(
                self.gradient[kept],
                self.curvature[np.ix_(kept, kept)],
                self.group[kept],
                self.rows[:, kept],
                self.limits,
                self.size[kept],
            ),
            kept,
        )

    def drop_unaffordable(self, allowed: Mask) -> Mask | None:
        """Drop candidates that no budget can pay even if every other group takes its cheapest.

        Returns:
            The smaller mask, or None if some budget cannot be met by the allowed candidates at all.
        """
        allowed = allowed.copy()
        for row, limit in zip(self.rows, self.limits, strict=True):
            while True:
                cheapest = self.least(row, allowed)
                if not np.isfinite(cheapest).all() or cheapest.sum() > limit:
                    return None
                # The exact sum decides feasibility; rounding of this difference may only keep too many.
                spare = limit - cheapest.sum()
                slack = 1e-12 * max(abs(limit), float(np.abs(cheapest).sum()))
                dropped = allowed & (row - cheapest[self.group] > spare + slack)
                if not dropped.any():
                    break
                allowed &= ~dropped
        return allowed
