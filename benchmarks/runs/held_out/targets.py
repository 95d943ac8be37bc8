"""The quadratic policy is nowhere worse than the additive one beyond chance, and better where layers interact."""

from __future__ import annotations

from typing import Any

from ...tools.selecting import Rows, having
from ...tools.targets import Target, at_most
from .summary import KEYS


def targets(rows: Rows) -> list[Target]:
    """Return the targets that summaries can answer."""
    worst = max(rows, key=_standard_errors)
    where = ", ".join(f"{worst[key]}" for key in KEYS)
    name = f"quadratic above additive policy in standard errors, at its worst ({where}) of {len(rows)}"
    found = [at_most(name, _standard_errors(worst), 2, "chance")]
    for row in having(rows, statistics="frozen", network="resnet20", budget=2.5):
        name = f"ResNet-20, frozen, 2.5 bits, {row['samples']} samples: loss of quadratic over additive policy"
        found.append(at_most(name, row["quadratic_over_additive"], 0.75))
    return found


def _standard_errors(row: Any) -> float:
    return row["quadratic_minus_additive"] / max(row["quadratic_difference_error"], 1e-12)
