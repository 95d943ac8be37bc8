"""What a peer's loss is over this package's, in the results of the comparison with other quantizers."""

from __future__ import annotations

from statistics import geometric_mean

from .selecting import Rows

OURS = "ours"
OWN_CANDIDATES = ", our candidates"
"""How names of peers end that are another tool's scores with this package's rounding, solver and repair."""


def over_ours(rows: Rows) -> dict[str, float]:
    """Return each peer's unseen loss over ours, geometric mean over the draws of samples that both answered.

    Args:
        rows: Those of one network and budget.

    Example:
        >>> rows = [
        ...     {"peer": peer, "seed": seed, "unseen_loss": loss}
        ...     for peer, seed, loss in (("ours", 0, 1.0), ("ours", 1, 2.0), ("one", 0, 4.0), ("one", 1, 2.0))
        ... ]
        >>> over_ours(rows)
        {'one': 2.0}
    """
    losses = {(row["peer"], row["seed"]): row["unseen_loss"] for row in rows if row["unseen_loss"] is not None}
    ratios: dict[str, list[float]] = {}
    for (peer, seed), loss in losses.items():
        if peer != OURS and (OURS, seed) in losses:
            ratios.setdefault(peer, []).append(loss / losses[OURS, seed])
    return {peer: geometric_mean(found) for peer, found in ratios.items()}
