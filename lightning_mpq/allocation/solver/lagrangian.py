"""Lagrangian relaxation of the budgets: a first policy, and a bound that costs next to nothing."""

from __future__ import annotations

import numpy as np

from .problem import Array, Indices, Mask, Problem


def pooled_row(problem: Problem, allowed: Mask) -> tuple[Array, float]:
    """Pool all budgets into one row: each is counted in units of what it leaves above its least use.

    The pooled row holds wherever all budgets hold, so that relaxing it is valid; with one budget it is
    that budget.

    Returns:
        Row of shape [K] with 0 at each group's cheapest candidate where there is one budget, and its limit.
    """
    row, limit = np.zeros(len(problem.group)), 0.0
    for values, bound in zip(problem.rows, problem.limits, strict=True):
        least = problem.least(values, allowed)
        row += (values - least[problem.group]) / _spare(values, float(bound - least.sum()))
        limit += 1.0
    return row, limit


def cheapest(problem: Problem, cost: Array, allowed: Mask) -> Indices:
    """Return the candidate of least cost in each group; the smaller, then the first, of equal ones."""
    order, group = problem.by_size, problem.group
    sorted_cost = np.where(allowed, cost, np.inf)[order]
    least = np.minimum.reduceat(sorted_cost, problem.start)
    hits = np.flatnonzero(sorted_cost == least[group])
    return order[hits[np.searchsorted(group[hits], np.arange(problem.group_count))]]


def lagrangian(problem: Problem, cost: Array, allowed: Mask, steps: int = 60) -> tuple[Indices, float, float]:
    r"""Solve ``min cost.x`` over one candidate a group with the pooled budget row priced by a multiplier.

    .. math:: b(\lambda) = \sum_l \min_{i \in C_l} (c_i + \lambda p_i) - \lambda p_0

    is a lower bound for every :math:`\lambda \ge 0`; it is concave, and bisection on the sign of its
    slope (the use of the row minus its limit) finds the best.

    Args:
        problem: Gives groups and budgets.
        cost: Linear cost of each candidate, shape [K].
        allowed: Candidates that may be chosen.
        steps: Bisection steps.

    Returns:
        A selection that keeps the pooled row, the multiplier, and the bound.
    """
    if len(problem.rows) == 0:
        selection = cheapest(problem, cost, allowed)
        return selection, 0.0, float(cost[selection].sum())
    row, limit = pooled_row(problem, allowed)

    def at(multiplier: float) -> tuple[Indices, float, float]:
        priced = cost + multiplier * row
        selection = cheapest(problem, priced, allowed)
        return selection, float(row[selection].sum()), float(priced[selection].sum()) - multiplier * limit

    selection, use, bound = at(0.0)
    if use <= limit:
        return selection, 0.0, bound
    low, high = 0.0, max(float(np.abs(cost[allowed]).max()), 1e-300)
    best = bound
    selection, use, bound = at(high)
    while use > limit and high < 1e300:
        low, high, best = high, high * 8, max(best, bound)
        selection, use, bound = at(high)
    best = max(best, bound)
    for _ in range(steps):
        middle = (low + high) / 2
        found, use, bound = at(middle)
        best = max(best, bound)
        if use > limit:
            low = middle
        else:
            high, selection = middle, found
    return selection, high, best


def gilmore_lawler_bound(problem: Problem, allowed: Mask) -> float:
    r"""Return a lower bound that needs no factorization (Gilmore 1962; Lawler 1963, for assignment problems).

    Each candidate is charged half of the least that every other group could add to it,

    .. math:: f(x) \ge \sum_i x_i \Big(a_i + \tfrac12 G_{ii} + \tfrac12 \sum_{m \ne l(i)} \min_{j \in C_m} G_{ij}\Big),

    and the linear problem that is left is bounded by its Lagrangian. Weak, but there at any time.
    """
    charged = np.zeros(len(problem.group))
    end = np.append(problem.start[1:], len(problem.group))
    for first, last in zip(problem.start, end, strict=True):
        least = problem.curvature[first:last][allowed[first:last]].min(axis=0)
        least[first:last] = 0.0
        charged += least
    cost = problem.additive_cost + charged / 2
    return lagrangian(problem, cost, allowed)[2]


def row_prices(problem: Problem, allowed: Mask, multiplier: float) -> Array:
    """Return the price of each budget, in loss per unit, that a multiplier of the pooled row stands for."""
    left = problem.limits - problem.least(problem.rows, allowed).sum(axis=1)
    spare = [_spare(row, float(room)) for row, room in zip(problem.rows, left, strict=True)]
    return multiplier / np.array(spare)


def _spare(row: Array, room: float) -> float:
    """Return what a budget leaves above its least use, or a small share of its costs where that is nothing."""
    largest = float(np.abs(row).max(initial=0))
    return max(room, 1e-9 * largest) if largest > 0 else 1.0
