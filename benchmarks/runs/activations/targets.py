"""What quantizing weights and inputs was meant to reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...tools.targets import Target, at_least, at_most
from .runtime import OWN

Row = dict[str, Any]
LOST = {"resnet20": 0.1, "mobilenet": 0.3, "digits": 0.1}
"""Network to the points of accuracy that 8 by 8 bits may lose without training."""


def targets(
    policies: Sequence[Row], deployed: Sequence[Row], profile: Sequence[Row], runtime: Sequence[Row]
) -> list[Target]:
    """Return the targets of the rows that were measured, for the first training of each network."""
    found = []
    for name in dict.fromkeys(row["network"] for row in policies):
        by_policy = _first(policies, name, "policy")
        if "W8A8" in by_policy:
            found.append(at_most(f"points lost by W8A8, {name}", by_policy["W8A8"]["points_lost"], LOST[name]))
        if name != "mobilenet" and (mixed := by_policy.get("W4A4 BOPs, quadratic")):
            found.append(at_most(f"points lost at the operations of W4A4, {name}", mixed["points_lost"], 1.0))
        by_file = _first(deployed, name, "file")
        if by_file:
            limit = by_file[OWN]["divergence"]
            what = f"divergence of W8A8 in onnxruntime, its own = limit, {name}"
            found.append(at_most(what, by_file["W8A8"]["divergence"], limit))
        for row in (row for row in profile if row["network"] == name):
            what = f"profile with inputs / without, {row['statistics']} statistics, {name}"
            found.append(at_most(what, row["ratio"], 1.5))
        for row in (row for row in runtime if row["network"] == name and row["operations_of_integers"]):
            what = f"speed in onnxruntime, {row['file']}, batch {row['batch']}, float = 1, {name}"
            found.append(at_least(what, row["speedup"], 1.7))
    return found


def _first(rows: Sequence[Row], network: str, key: str) -> dict[str, Row]:
    """Return the rows of a network's first seed by a key."""
    own = [row for row in rows if row["network"] == network]
    return {row[key]: row for row in own if row["seed"] == own[0]["seed"]}
