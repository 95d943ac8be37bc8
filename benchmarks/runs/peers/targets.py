"""What is asked of the comparison: that no peer leaves less damage than this package within the same bytes."""

from __future__ import annotations

from ...tools.selecting import Rows, grouped
from ...tools.targets import Target, at_most


def targets(rows: Rows) -> list[Target]:
    """Return a target for each network, draw of samples and budget that this package and a peer have answered."""
    found = []
    for (network, seed, budget), own in grouped(rows, "network", "seed", "budget").items():
        losses = {row["peer"]: row["unseen_loss"] for row in own if row["unseen_loss"] is not None}
        ours = losses.pop("ours", None)
        if ours is not None and losses:
            best = min(losses, key=lambda name: losses[name])
            name = (
                f"{network}, samples of seed {seed}, {budget:g} bits: unseen loss over that of the best peer ({best})"
            )
            found.append(at_most(name, ours / losses[best], 1.0))
    return found
