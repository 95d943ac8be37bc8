"""Root bounds of the same problems: ours, Clarabel's on the semidefinite program, HiGHS's on the convex one.

`lightning_mpq.allocation.solver.convexification` states the semidefinite program; the convex one is the objective as it
is over the simplices, which bounds only where the curvature is positive semidefinite.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import sparse

from lightning_mpq.allocation.solver.clock import Clock
from lightning_mpq.allocation.solver.difference_form import DifferenceForm
from lightning_mpq.allocation.solver.newton_path import convexify

from ..problems.allocation_instances import Array


def newton_path(form: DifferenceForm, value: float, seconds: float) -> float:
    """Return our bound."""
    found = convexify(form, Clock(seconds), tolerance=1e-4 * abs(value))
    return -np.inf if found is None else found.bound


def clarabel(form: DifferenceForm, value: float, seconds: float) -> float:
    """Return Clarabel's: one positive semidefinite cone of order n + 1, whose entries within blocks are fixed."""
    import clarabel as package

    n, unit = form.size, abs(value)
    first, second = (index.astype(np.int64) for index in np.triu_indices(n + 1))
    order = np.lexsort((first, second))  # column by column, as the cone wants its upper triangle
    first, second = first[order], second[order]
    same = np.append(-1, form.block)
    across = (first > 0) & (first != second) & (same[first] != same[second])
    plain = ((first == 0) & (second > 0)) | ((first == second) & (first > 0))
    column = np.where(plain, second - 1, -1)
    column[across] = n + np.arange(across.sum())
    used = np.flatnonzero(column >= 0)
    scale = np.where(first == second, 1.0, np.sqrt(2.0))
    cone = sparse.csc_matrix((-scale[used], (used, column[used])), shape=(len(first), n + int(across.sum())))
    budgets = sparse.hstack([sparse.csc_matrix(form.rows), sparse.csc_matrix((len(form.rows), int(across.sum())))])
    size = np.abs(form.limits) + np.abs(form.rows).sum(axis=1)
    constraints = sparse.vstack([sparse.diags(1 / size) @ budgets, cone]).tocsc()
    right = np.concatenate([form.limits / size, (second == 0).astype(float)])
    cost = np.concatenate([form.own, form.quadratic[first[across] - 1, second[across] - 1]]) / unit
    settings = package.DefaultSettings()
    settings.verbose, settings.time_limit = False, seconds
    nothing = sparse.csc_matrix((len(cost), len(cost)))
    cones = [package.NonnegativeConeT(len(form.limits)), package.PSDTriangleConeT(n + 1)]
    answer = package.DefaultSolver(nothing, cost, constraints, right, cones, settings).solve()
    return form.constant + unit * answer.obj_val_dual if str(answer.status) == "Solved" else -np.inf


def highs(form: DifferenceForm, value: float, seconds: float) -> float:
    """Return HiGHS's: its active-set method for convex quadratic programs."""
    import highspy

    n, unit = form.size, abs(value)
    blocks = np.zeros((len(form.group), n))
    blocks[form.block, np.arange(n)] = 1
    size = np.abs(form.limits) + np.abs(form.rows).sum(axis=1)
    matrix = sparse.csc_matrix(np.vstack([form.rows / size[:, None], blocks]))
    model, hessian = highspy.HighsModel(), sparse.csc_matrix(np.tril(form.quadratic / unit))
    program = model.lp_
    program.num_col_, program.num_row_ = n, matrix.shape[0]
    program.col_cost_, program.col_lower_, program.col_upper_ = form.linear / unit, np.zeros(n), np.ones(n)
    program.row_lower_ = np.full(matrix.shape[0], -np.inf)
    program.row_upper_ = np.concatenate([form.limits / size, np.ones(len(blocks))])
    _fill(program.a_matrix_, matrix)
    model.hessian_.dim_ = n
    _fill(model.hessian_, hessian)
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", seconds)
    solver.passModel(model)
    solver.run()
    solved = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
    return form.constant + unit * solver.getInfo().objective_function_value if solved else -np.inf


def _fill(target: object, matrix: sparse.csc_matrix) -> None:
    """Write a matrix, column by column, into HiGHS's own."""
    fields: dict[str, Array] = {"start_": matrix.indptr, "index_": matrix.indices, "value_": matrix.data}
    for name, values in fields.items():
        setattr(target, name, values)


class RelaxationPeer(NamedTuple):
    """A way to a root bound.

    Attributes:
        package: What must be installed.
        bound: Form, the best known value and seconds to the lower bound that it reaches; -inf if none.
        most: With more candidates it takes more than 16 GB of memory; None where no such number was seen.
    """

    package: str
    bound: Callable[[DifferenceForm, float, float], float]
    most: int | None = None


RELAXATIONS = {
    "lightning_mpq root": RelaxationPeer("lightning_mpq", newton_path),
    "clarabel root": RelaxationPeer("clarabel", clarabel, most=200),
    "highs convex root": RelaxationPeer("highspy", highs),
}
