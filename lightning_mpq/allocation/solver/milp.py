"""Integer programs stated in python-mip: additive objectives, and plain feasibility.

The only file that knows python-mip. Solvers compare with absolute tolerances, and CBC has called answers
optimal that were percents off when objectives were small; so every objective is scaled to about 1e4, every
row to a right-hand side of about 1e4, and every answer is checked in the caller's own numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mip
import mip.highs  # which mip imports with the first solve: an interrupt within leaves "not found" for good
import numpy as np

from .problem import Array, Indices, Mask, Problem

Solver = Literal["highs", "cbc"]
SOLVERS: tuple[Solver, ...] = ("highs", "cbc")
_SCALE = 1e4
"""Magnitude that objectives and rows are brought to, far above the solvers' absolute tolerances."""
_HAS_SOLUTION = (mip.OptimizationStatus.OPTIMAL, mip.OptimizationStatus.FEASIBLE)


@dataclass(frozen=True)
class MilpOutcome:
    """What an integer program returned.

    Attributes:
        selection: Its selection, not yet checked against the budgets; None if it found none.
        bound: Its lower bound in the caller's units; -inf if it has none.
        infeasible: Whether it proved that no selection exists.
    """

    selection: Indices | None
    bound: float
    infeasible: bool = False


def _model(solver: Solver) -> mip.Model:
    """Return an empty, quiet model; the solver is always named, or an environment variable would choose it."""
    model = mip.Model(sense=mip.MINIMIZE, solver_name={"highs": mip.HIGHS, "cbc": mip.CBC}[solver])
    model.verbose = 0
    model.threads = 1
    return model


def _row_scale(row: Array, limit: float) -> float:
    return _SCALE / max(abs(limit), float(np.abs(row).max(initial=0)), 1e-300)


def _optimize(model: mip.Model, seconds: float, tolerance: float) -> tuple[bool, float, bool]:
    """Run a scaled model; return whether it has a solution, its scaled bound, and whether it is infeasible."""
    model.max_mip_gap = 1e-9
    model.max_mip_gap_abs = min(max(tolerance, 1e-7), 1e9)
    status = model.optimize(max_seconds=max(seconds, 0.01))
    solved = status in _HAS_SOLUTION and model.num_solutions > 0
    bound = float(model.objective_bound) if solved and model.objective_bound is not None else -np.inf
    # CBC reports the incumbent as its bound, and 1.8e308 when it knows nothing: clamp, allow for tolerances.
    bound = bound - 1e-6 * max(abs(bound), 1.0) if abs(bound) < 1e300 else -np.inf
    return solved, bound, status == mip.OptimizationStatus.INFEASIBLE


def solve_additive(
    problem: Problem,
    cost: Array,
    allowed: Mask,
    *,
    solver: Solver = "highs",
    seconds: float = 10.0,
    start: Indices | None = None,
    tolerance: float = 0.0,
) -> MilpOutcome:
    """Solve ``min cost.x`` over one allowed candidate a group within the budgets: a multiple-choice knapsack.

    Args:
        problem: Gives groups and budgets; its curvature is not looked at.
        cost: Cost of each candidate, shape [K].
        allowed: Candidates that may be chosen.
        solver: ``"highs"`` or ``"cbc"``.
        seconds: Time limit.
        start: A feasible selection; candidates that cannot be in a better one are left out.
        tolerance: Absolute gap, in the units of ``cost``, that is good enough.
    """
    least = problem.least(cost, allowed)
    extra = cost - least[problem.group]
    constant = float(least.sum())
    kept = allowed.copy()
    spread = float(extra[allowed].max(initial=0))
    if start is not None:
        spread = float(extra[start].sum())
        kept &= extra <= spread * (1 + 1e-9)
        kept[start] = True
    unit = spread / _SCALE if spread > 0 else 1.0
    model = _model(solver)
    chosen = np.flatnonzero(kept)
    variables = [model.add_var(var_type=mip.BINARY) for _ in chosen]
    position = np.full(len(cost), -1)
    position[chosen] = np.arange(len(chosen))
    model.objective = mip.LinExpr(variables, [float(value) for value in extra[chosen] / unit])
    first = np.searchsorted(problem.group[chosen], np.arange(problem.group_count + 1))
    for group in range(problem.group_count):
        members = variables[first[group] : first[group + 1]]
        model.add_constr(mip.LinExpr(members, [1.0] * len(members), -1.0, "="), f"one_of_group_{group}")
    for number, (row, limit) in enumerate(zip(problem.rows, problem.limits, strict=True)):
        cheapest = problem.least(row, kept)
        taken, room = (row - cheapest[problem.group])[chosen], float(limit - cheapest.sum())
        scale = _row_scale(taken, room)
        used = np.flatnonzero(taken)
        expression = mip.LinExpr(
            [variables[i] for i in used], [float(v) for v in taken[used] * scale], -room * scale, "<"
        )
        if len(used):
            model.add_constr(expression, f"budget_{number}")
    if start is not None:
        model.start = [(variables[position[i]], 1.0) for i in start]
    solved, bound, infeasible = _optimize(model, seconds, tolerance / unit)
    selection = None
    if solved:
        values = np.array([float(v.x) for v in variables])
        selection = np.array(
            [chosen[first[g] + values[first[g] : first[g + 1]].argmax()] for g in range(problem.group_count)]
        )
    return MilpOutcome(selection, bound * unit + constant if np.isfinite(bound) else -np.inf, infeasible)


def find_feasible(problem: Problem, allowed: Mask, *, solver: Solver, seconds: float) -> MilpOutcome:
    """Look for any selection within several budgets, or the proof that there is none."""
    return solve_additive(problem, np.zeros(len(problem.group)), allowed, solver=solver, seconds=seconds)
