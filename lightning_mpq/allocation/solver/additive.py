"""Additive objectives: a multiple-choice knapsack, by its Lagrangian and, where that leaves a gap, by python-mip."""

from __future__ import annotations

import numpy as np

from .clock import Clock
from .lagrangian import cheapest, lagrangian
from .milp import Solver, find_feasible, solve_additive
from .problem import Array, Indices, Mask, Problem


def solve_additive_problem(
    problem: Problem, cost: Array, allowed: Mask, *, gap: float, reference: float, clock: Clock, solver: Solver
) -> tuple[Indices, float]:
    """Minimise ``cost.x`` and return a feasible selection and a proved lower bound.

    Args:
        problem: Gives groups and budgets; its curvature is not looked at.
        cost: Cost of each candidate, shape [K].
        allowed: Candidates that may be chosen.
        gap: Relative gap that is good enough, of ``max(|value|, reference)``.
        reference: See ``gap``.
        clock: The time that is left; a feasible selection comes in any case.
        solver: python-mip backend.

    Raises:
        InfeasibleProblemError: If no selection keeps every budget.
    """
    selection, _, bound = lagrangian(problem, cost, allowed)
    if not problem.is_feasible(selection):
        selection = _repaired(problem, cost, allowed, selection, clock, solver)
    value = float(cost[selection].sum())
    tolerance = gap * max(abs(value), reference)
    if value - bound > 0.9 * tolerance and clock.left() > 0:
        outcome = solve_additive(
            problem, cost, allowed, solver=solver, seconds=clock.left(), start=selection, tolerance=tolerance / 2
        )
        found = outcome.selection
        if found is not None and problem.is_feasible(found) and cost[found].sum() < value:
            selection, value = found, float(cost[found].sum())
        bound = max(bound, min(outcome.bound, value))
    selection = _smaller_of_equal(problem, cost, allowed, selection)
    return selection, min(bound, float(cost[selection].sum()))


def _repaired(
    problem: Problem, cost: Array, allowed: Mask, selection: Indices, clock: Clock, solver: Solver
) -> Indices:
    """Return a feasible selection near one that breaks some of several budgets."""
    selection = selection.copy()
    for _ in range(len(problem.group)):
        over = problem.usage(selection) - problem.limits
        if not (over > 0).any():
            return selection
        row = problem.rows[int((over / np.maximum(np.abs(problem.limits), 1e-300)).argmax())]
        current = selection[problem.group]
        freed = row[current] - row
        price = np.where(
            allowed & (freed > 0), np.maximum(cost - cost[current], 0) / np.where(freed > 0, freed, 1), np.inf
        )
        best = int(price.argmin())
        if not np.isfinite(price[best]):
            break
        selection[problem.group[best]] = best
    if problem.is_feasible(selection):
        return selection
    return feasible_by_milp(problem, allowed, clock, solver)


def feasible_by_milp(problem: Problem, allowed: Mask, clock: Clock, solver: Solver) -> Indices:
    """Return some feasible selection, found by python-mip.

    This is the one step that a time limit does not cut short: without it there is no policy at all.

    Raises:
        InfeasibleProblemError: If no selection keeps every budget.
    """
    outcome = find_feasible(problem, allowed, solver=solver, seconds=max(min(clock.left(), 600.0), 60.0))
    if outcome.selection is None or not problem.is_feasible(outcome.selection):
        raise InfeasibleProblemError("No choice of candidates keeps all budgets at once.")
    return outcome.selection


def _smaller_of_equal(problem: Problem, cost: Array, allowed: Mask, selection: Indices) -> Indices:
    """Replace choices by equally good ones of fewer bytes, or earlier ones, group by group."""
    selection = selection.copy()
    tolerance = 1e-12 * max(float(np.abs(cost[selection]).sum()), 1e-300)
    equal = allowed & (cost <= cost[selection][problem.group] + tolerance)
    preferred = cheapest(problem, problem.size, equal)
    for group in np.flatnonzero(preferred != selection):
        trial = selection.copy()
        trial[group] = preferred[group]
        if problem.is_feasible(trial) and cost[trial].sum() <= cost[selection].sum() + tolerance:
            selection = trial
    return selection


class InfeasibleProblemError(ValueError):
    """No selection keeps every budget."""
