"""What is lost with and without fine-tuning: a table."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import Rows, grouped, having, mean_of
from .tables import table


def block(content: Content, results: str) -> str:
    """Return means over seeds."""
    rows = content["results"]
    budgets = sorted({row["budget"] for row in rows})
    cells = [
        [
            f"{network}, {variant.replace('none', 'no fine-tuning')}",
            *(_cell(having(mine, budget=budget)) for budget in budgets),
        ]
        for (network, variant), mine in grouped(rows, "network", "variant").items()
    ]
    head = [
        "test points lost; rise of the cross-entropy (seeds)",
        *("every layer at 2" if budget == 2 else f"{budget:g} bits" for budget in budgets),
    ]
    return "\n".join(table(head, cells))


def _cell(rows: Rows) -> str:
    if not rows:
        return ""
    return f"{mean_of(rows, 'points_lost'):+.2f}; {mean_of(rows, 'cross_entropy_change'):+.4f} ({len(rows)})"
