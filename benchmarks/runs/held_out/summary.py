"""Means over draws of calibration images, and what chance there is in them."""

from __future__ import annotations

from itertools import combinations

from ...tools.results import Row
from ...tools.selecting import Rows, grouped, mean, spread

KEYS = ("network", "rounding", "statistics", "samples", "budget")


def summaries(draws: Rows) -> list[Row]:
    """Return what the quadratic policy gains over the additive one, and how much policies change from draw to draw."""
    rows = []
    for key, mine in grouped(draws, *KEYS).items():
        additive = [draw["divergence"]["additive"] for draw in mine]
        row: Row = {**dict(zip(KEYS, key, strict=True)), "draws": len(mine), "divergence_additive": mean(additive)}
        for name in ("quadratic", "unshrunk"):
            loss = [draw["divergence"][name] for draw in mine]
            differences = [a - b for a, b in zip(loss, additive, strict=True)]
            # Draws differ in calibration images and share the held-out ones, so both kinds of chance add up.
            chance = (spread(differences) / len(mine) ** 0.5) ** 2
            chance += mean(draw["difference_error"][name] for draw in mine) ** 2
            row |= {
                f"divergence_{name}": mean(loss),
                f"{name}_over_additive": mean(loss) / mean(additive),
                f"{name}_minus_additive": mean(differences),
                f"{name}_difference_error": chance**0.5,
            }
        for name in ("quadratic", "additive"):
            loss = [draw["divergence"][name] for draw in mine]
            changes = [
                sum(a != b for a, b in zip(one["bits"][name], two["bits"][name], strict=True))
                for one, two in combinations(mine, 2)
            ]
            row[f"groups_changed_{name}"] = mean(changes) if changes else 0.0
            row[f"relative_spread_{name}"] = spread(loss) / mean(loss)
        row["groups"] = len(mine[0]["bits"]["quadratic"])
        rows.append(row)
    return rows
