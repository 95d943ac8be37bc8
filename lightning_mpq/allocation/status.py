"""How a solve ended, as named values with advice."""

from __future__ import annotations

from enum import Enum


class SolveStatus(Enum):
    """How a solve ended; the value is a sentence that says what to do about it."""

    OPTIMAL = "Proved to be the best policy, to the 2e-6 that integer programming solvers are exact to."
    WITHIN_GAP = "Proved to be within the demanded gap of the best policy. Ask for a smaller `gap` to search on."
    TIME_LIMIT = (
        "The time limit ended the search; the policy is feasible and its gap is proved. "
        "Raise `time_limit`, accept a larger `gap`, or offer fewer schemes per group."
    )
    NO_TIME = "There was no time to search: the policy is feasible, its bound crude. Give a larger `time_limit`."

    @property
    def advice(self) -> str:
        """The sentence."""
        return self.value

    @property
    def is_proved(self) -> bool:
        """Whether the policy is proved to be within the demanded gap."""
        return self in (SolveStatus.OPTIMAL, SolveStatus.WITHIN_GAP)
