"""What pairs of layers are worth, and what follows for the number of calibration samples: a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...tools.results import Content
from ...tools.selecting import grouped, mean_of
from .tables import table


def block(content: Content, results: str) -> str:
    """Return the loss of the quadratic over that of the additive policy, with its standard error."""
    rows = content["results"]
    budgets = _budgets(rows)
    cells = []
    for (network, rounding, statistics, samples), found in grouped(
        rows, "network", "rounding", "statistics", "samples"
    ).items():
        ratios = _ratios(found)
        changed = f"{mean_of(found, 'groups_changed_quadratic'):.1f} of {found[0]['groups']}"
        what = f"{network}, {rounding.replace('_', ' ')}, {statistics}"
        cells.append([what, f"{samples:,}", *ratios, changed])
    head = [
        "network, rounding, BatchNorm statistics",
        "samples",
        *(f"{budget:g} bits" for budget in budgets),
        "groups that change from draw to draw",
    ]
    return "\n".join(table(head, cells))


def pairs(content: Content, results: str) -> str:
    """Return when pairs pay and when they do not: two rows of the same network, from as many samples."""
    rows = [row for row in content["results"] if row["network"] == "resnet20" and row["samples"] == 1024]
    said = {
        ("nearest", "frozen"): "rounded to nearest, BatchNorm statistics as they were",
        ("second_order", "reestimated"): "second-order rounding, statistics measured again (the default)",
    }
    cells = [
        [said[ways], *_ratios(found)] for ways, found in grouped(rows, "rounding", "statistics").items() if ways in said
    ]
    return "\n".join(table(["", *(f"{budget:g} bits" for budget in _budgets(rows))], cells))


def _budgets(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return sorted({row["budget"] for row in rows})


def _ratios(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the ratio with its standard error at each budget."""
    return [
        f"{row['quadratic_over_additive']:.2f} ± {row['quadratic_difference_error'] / row['divergence_additive']:.2f}"
        for row in sorted(rows, key=lambda row: row["budget"])
    ]
