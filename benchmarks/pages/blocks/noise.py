"""What may be done about noise in a Taylor model of few samples: a table."""

from __future__ import annotations

from ...tools.results import Content
from ...tools.selecting import grouped
from .tables import table


def block(content: Content, results: str) -> str:
    """Return the loss of each way's policy on unseen samples over that of the additive one, and what pairs are."""
    cases = grouped(content["results"], "network", "rounding")
    ways = [row["way"] for row in next(iter(cases.values()))]
    head = ["", *(f"{network}, {rounding.replace('_', ' ')}" for network, rounding in cases)]
    cells = [
        ["samples; ten times as many", *(f"{f[0]['samples']:g}; {f[0]['samples_pool']:g}" for f in cases.values())]
    ]
    for way in ways:
        rows = [next(row for row in found if row["way"] == way) for found in cases.values()]
        name = f"**{way}** (the default)" if way == ways[0] else way
        cells.append([name, *(f"{row['over_additive']:.2f} ± {row['error']:.2f}" for row in rows)])
    for title, key in (
        ("pairs beyond three standard errors", "beyond_three_errors"),
        ("share of their squares that is noise", "noise"),
    ):
        rows = [found[0] for found in cases.values()]
        cells.append([title, *(f"{100 * row[key]:.3g} %; {100 * row[f'{key}_pool']:.3g} %" for row in rows)])
    return "\n".join(table(head, cells))
