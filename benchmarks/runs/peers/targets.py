"""What is asked of the comparison: that no peer leaves less damage than this package within the same bytes."""

from __future__ import annotations

from ...tools.peers import OURS, over_ours
from ...tools.selecting import Rows, grouped
from ...tools.targets import Target, at_most


def targets(rows: Rows) -> list[Target]:
    """Return a target for each network and budget that this package and a peer have answered."""
    found = []
    for (network, budget), own in grouped(rows, "network", "budget").items():
        ratios = over_ours(own)
        if ratios:
            best = min(ratios, key=lambda name: ratios[name])
            draws = sum(row["peer"] == OURS and row["unseen_loss"] is not None for row in own)
            asked = f"{network}, {budget:g} bits, draws of samples: {draws}"
            name = f"{asked}, unseen loss over that of the best peer ({best})"
            found.append(at_most(name, 1 / ratios[best], 1.0))
    return found
