"""The same problems in other solvers, as they come: SCIP's nonconvex quadratic solver and OR-Tools' CP-SAT."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lightning_mpq.allocation.solver.problem import Problem


def scip(problem: Problem, seconds: float) -> tuple[float, float]:
    """Return the value and the bound that SCIP reaches with the quadratic objective as one constraint."""
    from pyscipopt import Model, quicksum

    unit = float(np.abs(problem.curvature).max()) / 1e3
    model = Model()
    model.hideOutput()
    model.setParam("limits/time", seconds)
    model.setParam("limits/gap", 1e-3)
    model.setParam("parallel/maxnthreads", 1)
    x = [model.addVar(vtype="B") for _ in problem.group]
    for group in range(problem.group_count):
        model.addCons(quicksum(x[i] for i in np.flatnonzero(problem.group == group)) == 1)
    for row, limit in zip(problem.rows, problem.limits, strict=True):
        model.addCons(quicksum(float(v / limit) * y for v, y in zip(row, x, strict=True)) <= 1)
    loss = model.addVar(lb=None)
    cost = problem.additive_cost / unit
    pairs = problem.curvature / unit
    first, second = np.nonzero(np.triu(problem.group[:, None] != problem.group[None, :]))
    linear = quicksum(float(c) * y for c, y in zip(cost, x, strict=True))
    products = quicksum(float(pairs[i, j]) * x[i] * x[j] for i, j in zip(first, second, strict=True))
    model.addCons(loss >= linear + products)
    model.setObjective(loss)
    model.optimize()
    if not model.getNSols():
        return np.inf, -np.inf
    values = np.array([model.getVal(y) for y in x])
    selection = np.array([i + values[i:j].argmax() for i, j in _ranges(problem)])
    return problem.value(selection), float(model.getDualbound()) * unit


def cp_sat(problem: Problem, seconds: float) -> tuple[float, float]:
    """Return the value and the bound that CP-SAT (one worker) reaches with products as booleans, in integers."""
    from ortools.sat.python import cp_model

    unit = float(np.abs(problem.curvature).max()) / 1e7
    model = cp_model.CpModel()
    x = [model.new_bool_var(f"x{i}") for i in range(len(problem.group))]
    for group in range(problem.group_count):
        model.add_exactly_one(x[i] for i in np.flatnonzero(problem.group == group))
    for row, limit in zip(problem.rows, problem.limits, strict=True):
        model.add(sum(int(v) * y for v, y in zip(row, x, strict=True)) <= int(limit))
    terms = [round(c / unit) * y for c, y in zip(problem.additive_cost, x, strict=True)]
    for i, j in zip(*np.nonzero(np.triu(problem.group[:, None] != problem.group[None, :])), strict=True):
        weight = round(problem.curvature[i, j] / unit)
        if weight:
            both = model.new_bool_var("")
            model.add_bool_or([x[i].negated(), x[j].negated(), both])
            model.add_implication(both, x[i])
            model.add_implication(both, x[j])
            terms.append(weight * both)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = 1
    solver.parameters.relative_gap_limit = 1e-3
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return np.inf, -np.inf
    chosen = np.array([solver.value(y) for y in x])
    selection = np.array([i + chosen[i:j].argmax() for i, j in _ranges(problem)])
    return problem.value(selection), solver.best_objective_bound * unit


def _ranges(problem: Problem) -> list[tuple[int, int]]:
    """Return first and one past the last candidate of each group."""
    ends = np.append(problem.start[1:], len(problem.group))
    return list(zip(problem.start.tolist(), ends.tolist(), strict=True))


class Peer(NamedTuple):
    """Another solver.

    Attributes:
        package: What must be installed.
        solve: Problem and seconds to the value and the bound that it reaches; infinite where it reaches none.
    """

    package: str
    solve: Callable[[Problem, float], tuple[float, float]]


PEERS = {"scip": Peer("pyscipopt", scip), "cp_sat": Peer("ortools", cp_sat)}
