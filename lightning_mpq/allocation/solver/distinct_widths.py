"""At most n distinct widths in a policy: one problem for each choice of n widths, sharing what is known."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from ..status import SolveStatus
from .additive import InfeasibleProblemError
from .clock import Clock
from .engine import Solution, solve
from .lagrangian import gilmore_lawler_bound
from .problem import Indices, Mask, Problem


def solve_with_widths(
    problem: Problem,
    bits: Indices,
    most: int | None,
    *,
    time_limit: float,
    start: Indices | None = None,
    **options: Any,
) -> Solution:
    """Solve a problem whose policies may use at most ``most`` distinct widths.

    Each choice of widths is a problem of its own. They are solved in the order of a cheap bound; the best
    policy so far is what the others must beat, so that most are dropped at their root. The proved bound is
    the least of all.

    Args:
        problem: What is solved.
        bits: Width of each candidate, shape [K].
        most: Number of distinct widths that are allowed; None for any number.
        time_limit: Seconds for all of it.
        start: A feasible selection that is known already.
        options: Passed to `engine.solve`.

    Raises:
        InfeasibleProblemError: If no selection keeps every budget and the rule.
    """
    widths = np.unique(bits)
    if most is None or most >= len(widths):
        return solve(problem, time_limit=time_limit, start=start, **options)
    clock = Clock(time_limit)
    choices: list[tuple[float, Mask]] = []
    for chosen in combinations(widths.tolist(), most):
        allowed = np.isin(bits, chosen)
        if len(np.unique(problem.group[allowed])) < problem.group_count:
            continue
        affordable = problem.drop_unaffordable(allowed)
        if affordable is not None:
            choices.append((gilmore_lawler_bound(problem, affordable), affordable))
    choices.sort(key=lambda choice: choice[0])
    best: Solution | None = None
    bound, everything_done = np.inf, True
    for least, allowed in choices:
        part, kept = problem.only(allowed)
        inside = None if start is None or not allowed[start].all() else np.searchsorted(kept, start)
        known = np.inf if best is None else best.value
        try:
            found = solve(part, time_limit=max(clock.left(), 0.0), start=inside, known=known, **options)
        except InfeasibleProblemError:
            continue
        bound = min(bound, max(least, found.bound))
        everything_done &= found.status.is_proved
        if best is None or found.value < best.value:
            best = replace(found, selection=kept[found.selection])
        clock.note("width choices")
    if best is None:
        raise InfeasibleProblemError(f"No policy of at most {most} distinct widths keeps all budgets at once.")
    status = best.status if everything_done else SolveStatus.TIME_LIMIT
    return replace(best, bound=min(bound, best.value), status=status, seconds=clock.seconds)
