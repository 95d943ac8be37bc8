"""The policy of fewest bytes whose predicted loss is at most so much."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InfeasibleBudgetError
from .allocation import Allocation
from .costs import CostRow
from .preparation import Preparation
from .solver.clock import Clock
from .solver.engine import Solution
from .solver.lagrangian import cheapest
from .solver.problem import Array
from .status import SolveStatus


def loss_limit(prepared: Preparation) -> float:
    """Return the largest predicted loss that the budget allows.

    Raises:
        ValueError: If it is to be within a factor of a uniform policy that the candidates do not offer.
    """
    budget = prepared.budget
    if budget.max_loss is not None:
        return budget.max_loss
    assert budget.within_uniform is not None
    bits, factor = budget.within_uniform
    uniform = prepared.uniform(bits)
    if uniform is None:
        raise ValueError(
            f"within_uniform compares with uniform {bits} bits, but not every group offers {bits} bits. Offer them to "
            "all groups, or compare with a width that all offer."
        )
    return factor * prepared.problem.value(uniform)


def fewest_bytes(prepared: Preparation, *, time_limit: float, gap: float, **options: Any) -> Allocation:
    """Find the least number of bytes at which the loss limit can be kept, by bisection on a byte budget.

    The least loss within b bytes falls with b. At each b the search for it stops as soon as a policy keeps
    the loss limit (then b can be lowered to what that policy takes) or the bound exceeds it (then no policy of
    b bytes or fewer keeps it, which is the proof).

    Raises:
        InfeasibleBudgetError: If no policy is known to keep the loss limit; the least known loss is named.
    """
    target = loss_limit(prepared)
    clock = Clock(time_limit)
    by_bytes = next(row for row in prepared.rows if row.name == "bytes")
    size = prepared.problem.size
    widest = prepared.solve(time_limit=time_limit / 2, gap=gap, target=target, **options)
    if widest.value > target:
        raise InfeasibleBudgetError(_unreachable(prepared, target, widest))
    low, best = float(prepared.problem.least(size).sum()) - 1, widest
    high = float(size[best.selection].sum())
    decided = True
    while high - low > max(1.0, gap * (high + by_bytes.offset)) and decided:
        middle = np.floor((low + high) / 2)
        try:
            found = _within(prepared, size, middle).solve(
                time_limit=max(clock.left(), 0.0), gap=min(gap, 1e-6), target=target, **options
            )
        except InfeasibleBudgetError:
            low = middle
            continue
        if found.value <= target:
            best, high = found, float(size[found.selection].sum())
        elif found.bound > target:
            low = middle
        else:
            decided = False
        clock.note("bisection on bytes")
    least = (min(low + 1, high) + by_bytes.offset) / by_bytes.divisor
    value = (high + by_bytes.offset) / by_bytes.divisor
    status = SolveStatus.TIME_LIMIT
    if value - least <= gap * value:
        status = SolveStatus.OPTIMAL if value <= least else SolveStatus.WITHIN_GAP
    solution = replace(best, status=status, seconds=clock.seconds)
    return prepared.allocation(
        solution,
        None,
        "quadratic",
        minimised="bytes",
        value=value,
        lower_bound=least,
        reference=value,
        limits={**prepared.limits, "predicted_loss": target},
    )


def _within(prepared: Preparation, size: Array, limit: float) -> Preparation:
    """Return the preparation with one more row: stored bits at most ``limit``."""
    problem = prepared.problem
    problem = replace(problem, rows=np.vstack([problem.rows, size]), limits=np.append(problem.limits, limit))
    row = CostRow("stored_bits", next(r.values for r in prepared.rows if r.name == "bytes"), limit=limit)
    reduction = replace(
        prepared.reduction,
        rows=problem.rows,
        limits=problem.limits,
        bounded=(*prepared.reduction.bounded, "stored_bits"),
    )
    return replace(prepared, rows=[*prepared.rows, row], reduction=reduction, problem=problem)


def _unreachable(prepared: Preparation, target: float, widest: Solution) -> str:
    """Say what loss can be reached at all."""
    problem = prepared.problem
    smallest = cheapest(problem, problem.size, np.ones(len(problem.group), dtype=bool))
    proof = "is below the least possible value" if widest.bound > target else "was not reached in the time"
    return (
        f"The predicted loss {target:.6g} {prepared.unit} {proof}{_within_what(prepared)}: the best one found has "
        f"{widest.value:.6g} (bound {widest.bound:.6g}); the smallest one has {problem.value(smallest):.6g}. Allow "
        f"more loss{', raise the other bounds' if prepared.limits else ''} or offer more bits."
    )


def _within_what(prepared: Preparation) -> str:
    """Name the bounds on costs that hold beside the one on the loss."""
    named = ", ".join(f"{name}={limit:.10g}" for name, limit in prepared.limits.items())
    return f" within {named}" if named else ""
