"""Whether policies are measured before one is chosen."""

from __future__ import annotations

from dataclasses import dataclass

from ..tools.checks import is_number, shown


@dataclass(frozen=True)
class SelectionOptions:
    """Whether policies are measured before one is chosen.

    Attributes:
        policies: How many are measured at most: the solved one, the additive one, one width everywhere. 1 takes the
            solved policy as it is, unless there are rounds.
        rounds: How often the loss is expanded again around the best policy so far and solved again, if prediction and
            measurement of that policy disagree. A policy that quantizes inputs is taken as it is.
        trust: By which factor they may differ before that is done.
        resamples: How often the samples are drawn again for the report, to say how stable the policy is (see
            `Allocation.stability`); 0 for not at all.

    Example::

        # takes the solved policy as it is
        mpq.MixedPrecisionQuantization(3.0, selection=mpq.SelectionOptions(policies=1, rounds=0))
    """

    policies: int = 3
    rounds: int = 1
    trust: float = 1.5
    resamples: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        if isinstance(self.resamples, bool) or not isinstance(self.resamples, int) or self.resamples < 0:
            raise ValueError(f"resamples must be an integer of at least 0, got {shown(self.resamples)}.")
        counts = is_number(self.policies, whole=True) and is_number(self.rounds, whole=True)
        if not counts or self.policies < 1 or self.rounds < 0 or not is_number(self.trust) or self.trust < 1:
            raise ValueError(
                f"Expected policies of at least 1, rounds of at least 0 and a trusted factor of at least 1, got "
                f"{shown(self.policies)}, {shown(self.rounds)} and {shown(self.trust)}."
            )

    @property
    def measures(self) -> bool:
        """Whether any policy is measured before the choice."""
        return self.policies > 1 or self.rounds > 0
