"""How little ResNet-20 is meant to lose by what the callback does by default."""

from __future__ import annotations

from ...tools.selecting import Rows, having, mean_of
from ...tools.targets import Target, at_least, at_most

MOST_LOST = {2.25: 0.5, 2.5: 0.3, 3.0: 0.15}
"""Average bits to points."""


def targets(rows: Rows) -> list[Target]:
    """Return the targets of ResNet-20, means over seeds."""
    found = []
    for budget, most in MOST_LOST.items():
        if mine := by_default(rows, "resnet20", budget):
            name = f"ResNet-20: points below float at {budget} bits, mean of {len(mine)} seeds"
            found.append(at_most(name, mean_of(mine, "points_lost"), most))
    if mine := by_default(rows, "resnet20", 4.0):
        least = min(row["p_value"] if row["points_lost"] > 0 else 1.0 for row in mine)
        name = "ResNet-20: least p-value of a loss at 4 bits (McNemar)"
        found.append(at_least(name, least, round(0.05 / len(mine), 3), "chance", " (0.05 over the seeds)"))
    return found


def by_default(rows: Rows, network: str, budget: float) -> Rows:
    """Return the rows of what the callback does by default, one for each seed."""
    return having(rows, network=network, rounding="sequential", policy="quadratic", repair=True, budget=budget)
