"""What a forward pass takes beside the stored weights: operations, activations, keys and values, kernels' layouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..tools.checks import is_number, shown


@dataclass(frozen=True)
class Workload:
    """What one forward pass takes, as `lightning_mpq.modules.workload.measure_workload` counts it.

    Attributes:
        macs: Group to multiply-accumulates with its weights, for one sample.
        activation_bytes: The most that one layer reads, writes and dequantizes at once.
        cache_bytes: Keys and values that the model keeps for the positions it has seen.
        kernel_bytes: (group, scheme) to what kernels keep of its weights beside the stored ones; nothing for those
            that stand not there.

    Raises:
        ValueError: If a number is negative or not finite.
    """

    macs: Mapping[str, float] = field(default_factory=dict)
    activation_bytes: float = 0.0
    cache_bytes: float = 0.0
    kernel_bytes: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot have been counted."""
        own = {"activation_bytes": self.activation_bytes, "cache_bytes": self.cache_bytes}
        for name, value in {**own, **self.macs, **{" @ ".join(k): v for k, v in self.kernel_bytes.items()}}.items():
            if not is_number(value) or not 0 <= value < inf:
                raise ValueError(f"The workload of {name} must be a number of at least 0, got {shown(value)}.")

    def kept_by_kernels(self, candidate: Candidate) -> float:
        """Return the bytes that kernels keep of a candidate's weights beside the stored ones."""
        return self.kernel_bytes.get((candidate.group, str(candidate.scheme)), 0.0)

    def macs_of(self, group: LayerGroup) -> float:
        """Return the multiply-accumulates of a group.

        Raises:
            ValueError: If nobody counted them.
        """
        count = self.macs.get(group.name)
        if count is None or not is_number(count) or not 0 <= count < inf:
            raise ValueError(
                f"macs must give group {group.name!r} a count of at least 0, got {shown(count)}. Calls of its layers "
                "could not be seen in a forward pass; give Budget(macs={group: count}) for all groups."
            )
        return float(count)
