"""Budgets that no policy can keep, known before anything is solved."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InfeasibleBudgetError
from ..groups.choices import Choices
from ..tools.warning import warn
from .budget import Budget
from .costs import CostRow, cost_rows
from .rules import Rules
from .solver.reduction import Reduction


def check_budget(choices: Choices, budget: Budget, rules: Rules | None = None) -> None:
    """Refuse a budget that no policy can keep, or rules that contradict each other; nothing is solved.

    Bounds on a forward pass that was not measured are left out.

    Raises:
        InfeasibleBudgetError: If a bound lies below the least possible cost.
        ValueError: If rules contradict each other.
    """
    known = budget.without_passes()
    if known is None:
        return
    rows = cost_rows(choices, known)
    refuse_unreachable(rows, Reduction.of(choices, rows, rules or Rules()))


def refuse_unreachable(rows: Sequence[CostRow], reduction: Reduction) -> None:
    """Refuse a limit that no policy can keep by itself; warn of one that bounds nothing.

    Raises:
        InfeasibleBudgetError: If there is one.
    """
    by_name = {row.name: row for row in rows}
    for name, values, limit in zip(reduction.bounded, reduction.rows, reduction.limits, strict=True):
        row = by_name[name]
        least, most = extremes(row, reduction)
        if row.limit is not None and row.limit > most:
            warn(
                f"The budget {name}={row.limit:.10g} bounds nothing: the most possible value is {most:.10g} "
                f"{row.unit} (the least is {least:.10g}). Lower it if the model is to become smaller."
            )
        if reduction.least_sum(values) > limit:
            raise InfeasibleBudgetError(
                f"The budget {name}={row.limit:.10g} is below the least possible value, {least:.10g} {row.unit}"
                f" (the most possible is {most:.10g}{_fixed(row)}). Raise the budget or offer candidates of fewer bits."
            )


def _fixed(row: CostRow) -> str:
    """Say which part of a cost no policy changes."""
    return f"; {row.offset / row.divisor:.10g} are there whatever the bits" if row.offset else ""


def extremes(row: CostRow, reduction: Reduction) -> tuple[float, float]:
    """Return the least and the most that a cost can be under the rules."""
    values = reduction.summed(row.values)
    least, most = reduction.least_sum(values), -reduction.least_sum(-values)
    return (row.offset + least) / row.divisor, (row.offset + most) / row.divisor


def together_infeasible(rows: Sequence[CostRow], reduction: Reduction, rules: Rules) -> str:
    """Say that budgets contradict each other or the rules, and what each could be alone."""
    by_name = {row.name: row for row in rows}
    parts = []
    for name in reduction.bounded:
        least, most = extremes(by_name[name], reduction)
        parts.append(f"{name}={by_name[name].limit:.10g} (alone possible: {least:.10g} to {most:.10g})")
    rule = rules.max_distinct_bits
    also = "" if rule is None else f" with at most {rule} distinct widths"
    return f"No policy keeps these budgets all at once{also}: {'; '.join(parts)}. Raise one of them."
