"""`allocate`: a Taylor model and a budget in, a plan with its certificate out."""

from __future__ import annotations

from math import isfinite

import numpy as np

from ..curvature.model import TaylorModel
from ..errors import InfeasibleBudgetError
from .additive import InfeasibleProblemError
from .allocation import OBJECTIVES, Allocation, Objective
from .budget import Budget
from .costs import CostRow, cost_rows
from .engine import Progress, Solution, silent, solve
from .milp import SOLVERS, Solver
from .problem import Indices
from .reduction import ReducedProblem, reduce_problem
from .rules import Rules


def allocate(
    taylor: TaylorModel,
    budget: Budget,
    *,
    rules: Rules | None = None,
    objective: Objective = "quadratic",
    solver: Solver = "highs",
    time_limit: float = 10.0,
    gap: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Allocation:
    """Choose the candidate of each group that the loss suffers least from, within a budget, and prove it.

    Args:
        taylor: Predicts the loss of every plan.
        budget: What the plan may cost.
        rules: What the plan must look like.
        objective: ``"quadratic"`` minimises the whole prediction; ``"additive"`` leaves pairs of groups out.
        solver: python-mip backend, ``"highs"`` or ``"cbc"``.
        time_limit: Seconds; when they are up the best plan comes with the gap that is proved. At 0 a
            feasible plan still comes.
        gap: Relative gap that ends the search.
        seed: The result is the same for the same seed, unless the time limit cut the search short.
        progress: Called now and then with a fraction in [0, 1] and a message.

    Raises:
        InfeasibleBudgetError: If no plan keeps the budget; the least and the most possible value are named.
        ValueError: If an argument or a rule makes no sense.
    """
    _check_arguments(objective, solver, time_limit, gap)
    rules = rules or Rules()
    rows = cost_rows(taylor, budget)
    a, G = taylor.gradient.numpy(), taylor.curvature.numpy()
    reduced = reduce_problem(taylor, rows, rules, a, G)
    check_limits(reduced, rows)
    reference = reference_loss(taylor, reduced)
    report = progress or silent
    try:
        simple = solve(
            reduced.problem, gap=gap, time_limit=min(time_limit, 10.0), solver=solver, seed=seed, additive=True
        )
        if objective == "additive":
            solution = simple
        else:
            solution = solve(
                reduced.problem,
                gap=gap,
                reference=reference,
                time_limit=time_limit,
                solver=solver,
                seed=seed,
                start=simple.selection,
                progress=report,
            )
    except InfeasibleProblemError as error:
        raise InfeasibleBudgetError(_together_infeasible(reduced, rows)) from error
    return make_allocation(taylor, rows, reduced, solution, simple.selection, objective, reference)


def _check_arguments(objective: str, solver: str, time_limit: float, gap: float) -> None:
    """Refuse arguments that make no sense."""
    if objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}.")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}.")
    if not time_limit >= 0:
        raise ValueError(f"time_limit must be a number of seconds of at least 0, got {time_limit!r}.")
    if not (gap >= 0 and isfinite(gap)):
        raise ValueError(f"gap must be a finite number of at least 0, got {gap!r}.")


def check_limits(reduced: ReducedProblem, rows: list[CostRow]) -> None:
    """Refuse a budget that no plan can keep by itself.

    Raises:
        InfeasibleBudgetError: Naming the least and the most possible value.
    """
    problem = reduced.problem
    by_name = {row.name: row for row in rows}
    for name, values, limit in zip(reduced.bounded, problem.rows, problem.limits, strict=True):
        row = by_name[name]
        if problem.least(values).sum() > limit:
            least, most = _extremes(reduced, row)
            raise InfeasibleBudgetError(
                f"The budget {name}={row.limit:.10g} is below the least possible value, {least:.10g} {row.unit}"
                f" (the most possible is {most:.10g}). Raise the budget or offer candidates of fewer bits."
            )


def _extremes(reduced: ReducedProblem, row: CostRow) -> tuple[float, float]:
    """Return the least and the most that a cost can be under the rules."""
    problem = reduced.problem
    values = np.array([row.values[list(choice)].sum() for choice in reduced.members])
    least = float(problem.least(values).sum())
    most = -float(problem.least(-values).sum())
    return (row.offset + least) / row.divisor, (row.offset + most) / row.divisor


def _together_infeasible(reduced: ReducedProblem, rows: list[CostRow]) -> str:
    """Say that budgets contradict each other, and what each could be alone."""
    by_name = {row.name: row for row in rows}
    parts = []
    for name in reduced.bounded:
        least, most = _extremes(reduced, by_name[name])
        parts.append(f"{name}={by_name[name].limit:.10g} (alone possible: {least:.10g} to {most:.10g})")
    return f"No plan keeps these budgets all at once: {'; '.join(parts)}. Raise one of them."


def reference_loss(taylor: TaylorModel, reduced: ReducedProblem) -> float:
    """Return the magnitude of the predicted loss at the widest feasible uniform plan, 0 if there is none.

    It is what a gap is measured against when the optimum itself is near zero or negative.
    """
    for bits in sorted(set(reduced.bits.tolist()), reverse=True):
        selection = uniform_selection(reduced, bits)
        if selection is not None and reduced.problem.is_feasible(selection):
            return abs(reduced.problem.value(selection))
    return 0.0


def uniform_selection(reduced: ReducedProblem, bits: int) -> Indices | None:
    """Return the selection that gives every group one width (the first scheme of it), None if not all offer it."""
    problem = reduced.problem
    matching = np.flatnonzero(reduced.bits == bits)
    groups, first = np.unique(problem.group[matching], return_index=True)
    return matching[first] if len(groups) == problem.group_count else None


def make_allocation(
    taylor: TaylorModel,
    rows: list[CostRow],
    reduced: ReducedProblem,
    solution: Solution,
    additive: Indices,
    objective: Objective,
    reference: float,
) -> Allocation:
    """Recompute everything from the Taylor model's own numbers and put it into one record."""
    chosen = reduced.indices(solution.selection)
    policy = taylor.policy(chosen)
    additive_policy = taylor.policy(reduced.indices(additive))
    by_name = {row.name: row for row in rows}
    prediction = taylor.predict(policy)
    value = prediction.value - (prediction.between if objective == "additive" else 0.0)
    return Allocation(
        policy=policy,
        prediction=prediction,
        objective=objective,
        value=value,
        lower_bound=min(solution.bound, value),
        reference=reference,
        costs={row.name: row.of(np.array(chosen)) for row in rows},
        limits={row.name: row.limit for row in rows if row.limit is not None},
        prices={
            name: float(price) * by_name[name].divisor
            for name, price in zip(reduced.bounded, solution.prices, strict=True)
        },
        status=solution.status,
        seconds=solution.seconds,
        nodes=solution.nodes,
        additive_policy=additive_policy,
        additive_loss=taylor.predict(additive_policy).value,
        prediction_error=taylor.prediction_error(policy),
    )
