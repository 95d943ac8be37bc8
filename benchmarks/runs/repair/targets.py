"""No repair loses by more than chance, alone or on top of another, nor do more candidates."""

from __future__ import annotations

from typing import Any

from ...tools.selecting import Rows, grouped, having, mean
from ...tools.targets import Target, at_most
from .measuring import GRANULARITIES


def targets(rows: Rows) -> list[Target]:
    """Return the targets that rows can answer."""
    found = []
    for (network, policy), mine in grouped(having(rows, compared="repair"), "network", "policy").items():
        by_float = having(mine, rounding="independent")
        in_sequence = having(mine, rounding="sequential")
        none = mean(divergence(row) for row in by_float if not row["repaired"])
        rounded = mean(divergence(row) for row in in_sequence if not row["repaired"])
        every = mean(divergence(row) for row in in_sequence if row["repaired"])
        name = f"{network}, {policy}: held-out divergence in sequence and repaired over"
        found.append(at_most(f"{name} neither", every / none, 1, "promise"))
        found.append(at_most(f"{name} in sequence alone", every / rounded, 1.05))
    for (network, budget), mine in grouped(having(rows, compared="granularity"), "network", "budget").items():
        one, several = (mean(divergence(row) for row in having(mine, offered=offered)) for offered in GRANULARITIES)
        name = f"{network}, {budget:g} bits: held-out divergence with blocks as candidates over channels alone"
        found.append(at_most(name, several / one, 1.1))
    return found


def divergence(row: Any) -> float:
    """Return the divergence on held-out images, nats per image."""
    return float(row["held_out"]["divergence"])
