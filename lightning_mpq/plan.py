"""What is known of a job before anything is packed, and after."""

from __future__ import annotations

from dataclasses import dataclass

from .allocation import Allocation
from .curvature import TaylorModel
from .groups import LayerGroups
from .quantizers import QuantizedRows
from .report import Report, TrialRow
from .rounded_weights import RoundedWeights


@dataclass(frozen=True)
class Outcome:
    """What a run of the pipeline found and did.

    Attributes:
        groups: The groups, and what stayed in float.
        taylor: The Taylor model; other budgets need no new profile.
        allocation: The plan with its certificate.
        report: The verdict, or None if it was not asked for.
    """

    groups: LayerGroups
    taylor: TaylorModel
    allocation: Allocation
    report: Report | None


@dataclass(frozen=True)
class Plan:
    """What is known before anything is packed.

    Attributes:
        groups: The groups, and what stays in float.
        rounded: Rounded weights of all candidates; None if all schemes are rounded to nearest.
        taylor: The Taylor model.
        allocation: The plan with its certificate.
        trials: The plans that were measured before it was chosen.
    """

    groups: LayerGroups
    rounded: RoundedWeights | None
    taylor: TaylorModel
    allocation: Allocation
    trials: tuple[TrialRow, ...] = ()

    def codes(self) -> dict[str, QuantizedRows]:
        """Return the codes of the chosen candidates that were profiled; none where a weight is rounded by itself."""
        return {} if self.rounded is None else self.rounded.of_policy(self.allocation.policy)
