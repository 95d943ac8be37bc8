"""All that may be chosen for a model: its groups, and the candidates of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..policy import BitPolicy
from ..schemes import LayerScheme, WeightScheme
from .candidates import Candidate
from .groups import LayerGroup


@dataclass(frozen=True)
class Choices:
    """One candidate of each group is to be chosen.

    Attributes:
        groups: The L groups, in order.
        candidates: The K candidates, in the order of ``groups``, at least one for each.
        float_bytes: Bytes of everything in the model that no candidate touches.

    Raises:
        ValueError: If candidates are not in the order of groups.
    """

    groups: tuple[LayerGroup, ...]
    candidates: tuple[Candidate, ...]
    float_bytes: int = 0

    def __post_init__(self) -> None:
        """Check the order once, so that everything else can rely on it."""
        order = {group.name: position for position, group in enumerate(self.groups)}
        positions = [order.get(candidate.group, -1) for candidate in self.candidates]
        if -1 in positions or positions != sorted(positions) or set(positions) != set(order.values()):
            raise ValueError("Candidates must stand in the order of groups, at least one for each group.")

    @cached_property
    def _index(self) -> dict[tuple[str, LayerScheme], int]:
        return {(candidate.group, candidate.scheme): index for index, candidate in enumerate(self.candidates)}

    def describe(self, index: int) -> str:
        """Return ``group @ scheme`` of a candidate, for messages."""
        return f"{self.candidates[index].group} @ {self.candidates[index].scheme}"

    def indices(self, policy: Mapping[str, LayerScheme | WeightScheme]) -> list[int]:
        """Return the candidate of each group, in order, that a policy chooses.

        Raises:
            ValueError: If the policy misses a group or chooses what is not a candidate.
        """
        chosen = []
        for group in self.groups:
            if group.name not in policy:
                raise ValueError(
                    f"The policy has no scheme for the group {group.name!r}; it must have one for every group."
                )
            key = (group.name, LayerScheme.of(policy[group.name]))
            if key not in self._index:
                offered = ", ".join(str(c.scheme) for c in self.candidates if c.group == group.name)
                raise ValueError(
                    f"{key[1]} is not a candidate of the group {group.name!r}. Choose one of {offered} (clip and "
                    "rounding as there), or profile it."
                )
            chosen.append(self._index[key])
        return chosen

    def policy(self, indices: Sequence[int]) -> BitPolicy:
        """Return the policy that chooses the given candidates, one per group, in order."""
        schemes = {self.candidates[i].group: self.candidates[i].scheme for i in indices}
        return BitPolicy(schemes, {group.name: group.layers for group in self.groups})
