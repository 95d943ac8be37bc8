"""Rounding, policy and repair without fine-tuning: figure and tables."""

from __future__ import annotations

from collections.abc import Iterator

from ...tools.results import Content
from ...tools.selecting import Rows, grouped, having, mean_of
from .tables import table

_WAYS = {
    "nearest, uniform": ("nearest", "uniform"),
    "nearest, quadratic policy": ("nearest", "quadratic"),
    "second order, additive policy": ("second_order", "additive"),
    "second order, quadratic policy": ("second_order", "quadratic"),
    "in sequence, quadratic policy": ("sequential", "quadratic"),
}


def block(content: Content, results: str) -> str:
    """Return the figure and a table of points lost for each network, means over seeds."""
    lines = [f"![Test accuracy against stored bytes for every way]({results}/compression.svg)", ""]
    for (network,), mine in grouped(content["results"], "network").items():
        base, quantized = having(mine, rounding="float"), [row for row in mine if row["budget"] is not None]
        budgets = sorted({row["budget"] for row in quantized})
        most = max(row["bits"] - row["budget"] for row in quantized)
        seeds = f"{len(base)} training seed{'s' * (len(base) > 1)}"
        lines += [
            f"{network}, {seeds}, float {mean_of(base, 'accuracy'):.2f} %: test points lost without / with "
            f"repair of BatchNorm statistics; uniform widths store up to {most:.2f} bits more, for scales",
            "",
            *table(["average bits", *(f"{budget:g}" for budget in budgets)], _rows(quantized, budgets)),
            "",
        ]
    return "\n".join(lines).rstrip()


def _rows(rows: Rows, budgets: list[float]) -> Iterator[list[str]]:
    for name, (rounding, policy) in _WAYS.items():
        cells = [_cell(having(rows, rounding=rounding, policy=policy, budget=budget)) for budget in budgets]
        if any(cells):
            yield [name, *cells]


def _cell(rows: Rows) -> str:
    without, repaired = (having(rows, repair=repair) for repair in (False, True))
    if not without or not repaired:
        return ""
    return " / ".join(f"{mean_of(found, 'points_lost'):+.2f}" for found in (without, repaired))
