"""What the main job is meant to keep: time, accuracy, and the budget."""

from __future__ import annotations

from collections.abc import Mapping

from ...tools.selecting import Rows, having
from ...tools.targets import Target, at_least, at_most


def targets(experiment: str, rows: Rows, stages: Mapping[str, Mapping[str, float]]) -> list[Target]:
    """Return the targets of an experiment.

    Args:
        experiment: ``"digits"`` or ``"fashion_mnist"``.
        rows: One for each budget and model.
        stages: Stage to its seconds and forward passes.
    """
    chosen = having(rows, model="chosen")
    job = max(sum(row["seconds"].values()) for row in chosen)
    cost = "at 7 widths, in forward passes over the same samples"
    found = [
        at_most(f"profile {cost}", stages["profile"]["forward_passes"], 12),
        at_most(f"rounding all candidates {cost}", stages["round"]["forward_passes"], 40),
        at_most("seconds from trained weights to the packed, repaired and compared model, slowest budget", job, 180),
    ]
    if experiment == "fashion_mnist":
        best = max(100 * row["test_accuracy"] for row in having(rows, model="float"))
        found.append(at_least("float test accuracy, %", best, 92.5))
        at_three = {row["model"]: 100 * row["test_accuracy"] for row in having(rows, budget_bits=3.0)}
        if at_three:
            lost = at_three["float"] - at_three["chosen"]
            found.append(at_most("points below float at 3 average bits", lost, 0.7))
    for row in chosen:
        limit = row["budget_bits"]
        found.append(at_most(f"stored bits per weight at a budget of {limit}", row["average_bits"], limit, "promise"))
    return found
