"""How little ResNet-20 is meant to lose after an epoch with learned scales and distillation, and to cost."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from ...tools.selecting import Rows, having, mean, mean_of, spread
from ...tools.targets import Target, at_least, at_most


def targets(rows: Rows, ratios: Mapping[str, float]) -> list[Target]:
    """Return the targets of ResNet-20, means over seeds.

    Args:
        rows: What was measured.
        ratios: Network to the time of a step over that of a float step.
    """
    found = []
    distilled = having(rows, network="resnet20", variant="learned scales, distilled")
    if two := having(distilled, budget=2.0):
        name = f"ResNet-20: points below float with every layer at 2 bits, mean of {len(two)} seeds"
        found.append(at_most(name, mean_of(two, "points_lost"), 0.3))
    if half := having(distilled, budget=2.5):
        least = min(row["p_value"] if row["points_lost"] > 0 else 1.0 for row in half)
        name = "ResNet-20: least p-value of a loss at 2.5 bits (McNemar)"
        found.append(at_least(name, least, round(0.05 / len(half), 3), "chance", " (0.05 over the seeds)"))
        losses = [row["points_lost"] for row in half]
        if len(losses) > 1:
            error = spread(losses) / sqrt(len(losses))
            name = f"ResNet-20: points below float at 2.5 bits, mean of {len(half)} seeds"
            found.append(at_most(name, mean(losses), round(2 * error, 2), "chance", " (two standard errors)"))
    if "resnet20" in ratios:
        found.append(at_most("ResNet-20: step with learned scales over float step", ratios["resnet20"], 1.6))
    return found
