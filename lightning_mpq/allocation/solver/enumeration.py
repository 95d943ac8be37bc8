"""Every selection of a few candidates, at once: the leaves of the search, and what tests compare with."""

from __future__ import annotations

import numpy as np

from .problem import Indices, Mask, Problem


def all_selections(problem: Problem, allowed: Mask | None = None) -> Indices:
    """Return every selection among the allowed candidates, feasible or not, shape [count, L]."""
    every = np.ones(len(problem.group), dtype=bool) if allowed is None else allowed
    choices = [np.flatnonzero(every & (problem.group == group)) for group in range(problem.group_count)]
    count = int(np.prod([len(choice) for choice in choices]))
    selections = np.empty((count, len(choices)), dtype=np.int64)
    repeat = count
    for group, choice in enumerate(choices):
        repeat //= len(choice)
        selections[:, group] = np.resize(np.repeat(choice, repeat), count)
    return selections


def enumerate_selections(problem: Problem, allowed: Mask | None = None) -> tuple[Indices | None, float]:
    """Return the best feasible selection among the allowed candidates and its value; (None, inf) if there is none."""
    selections = all_selections(problem, allowed)
    feasible = np.ones(len(selections), dtype=bool)
    for row, limit in zip(problem.rows, problem.limits, strict=True):
        feasible &= row[selections].sum(axis=1) <= limit
    selections = selections[feasible]
    if not len(selections):
        return None, np.inf
    values = problem.gradient[selections].sum(axis=1)
    for first in range(problem.group_count):
        rows = problem.curvature[selections[:, first]]
        values += np.take_along_axis(rows, selections, axis=1).sum(axis=1) / 2
    best = int(values.argmin())
    return selections[best], problem.value(selections[best])
