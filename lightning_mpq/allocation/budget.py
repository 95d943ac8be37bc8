"""What a policy may cost: upper bounds, any number at once, or a loss that must not be exceeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from math import isfinite

from ..groups.groups import LayerGroup
from ..schemes import LayerScheme
from ..tools.checks import shown
from .latency_table import LatencyTable

CostFunction = Callable[[LayerGroup, LayerScheme], float]
_LIMITS = (
    "average_bits",
    "bytes",
    "largest_group_bytes",
    "bit_operations",
    "mac_average_bits",
    "latency",
    "max_loss",
    "within_uniform",
)


@dataclass(frozen=True)
class CustomCost:
    """A cost of the user's own, added up over groups.

    Attributes:
        name: What it is called in results and messages.
        function: (group, scheme) to the cost of that choice.
        limit: The sum may be at most this; None only reports it.

    Example:
        At most three groups may have more than 4 bits:

        >>> wide = CustomCost("wide groups", lambda group, scheme: float(scheme.bits > 4), limit=3)
        >>> Budget(average_bits=4, custom=(wide,)).custom[0].limit
        3
    """

    name: str
    function: CostFunction
    limit: float | None = None


@dataclass(frozen=True)
class Budget:
    """Upper bounds that a policy must keep, all of them at once.

    Attributes:
        average_bits: Bits stored for the quantized weights, scales and zero points included, per weight.
        bytes: Bytes of the whole model: quantized weights with scales and zero points, and all that stays float except
            weights that no output is computed with.
        largest_group_bytes: Bytes of the largest single group.
        bit_operations: Multiply-accumulates times weight bits times activation bits, summed (BOPs).
        mac_average_bits: Average of the weight bits, weighted by multiply-accumulates.
        macs: Group name to multiply-accumulates of one forward pass; needed by the two above.
        activation_bits: Bits of the activations in ``bit_operations``.
        latency: Milliseconds, added up over groups from ``latency_table``.
        latency_table: Milliseconds of each (group, scheme).
        custom: Costs of the user's own.
        max_loss: The predicted loss may be at most this; the policy of fewest bytes is looked for. That of the
            divergence is in nats per sample, summed over the positions of a sequence.
        within_uniform: (bits, factor): the predicted loss may be at most ``factor`` times that of the policy
            that gives every group this many bits; the policy of fewest bytes is looked for.

    Raises:
        ValueError: If nothing is bounded, a bound is not positive, or a bound lacks what it is computed from.

    Example:
        >>> Budget(average_bits=3.0)
        Budget(average_bits=3.0)
    """

    average_bits: float | None = None
    bytes: float | None = None
    largest_group_bytes: float | None = None
    bit_operations: float | None = None
    mac_average_bits: float | None = None
    macs: Mapping[str, float] | None = None
    activation_bits: int = 8
    latency: float | None = None
    latency_table: LatencyTable | None = None
    custom: tuple[CustomCost, ...] = field(default=())
    max_loss: float | None = None
    within_uniform: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        """Refuse budgets that mean nothing."""
        object.__setattr__(self, "custom", tuple(self.custom))
        if not any(getattr(self, name) is not None for name in _LIMITS) and not any(
            cost.limit is not None for cost in self.custom
        ):
            raise ValueError(
                f"A budget needs at least one bound: give one of {', '.join(_LIMITS)}, or a custom cost with a limit."
            )
        for name in _LIMITS[:-1]:
            _check_positive(name, getattr(self, name))
        for cost in self.custom:
            if cost.limit is not None and not isfinite(cost.limit):
                raise ValueError(
                    f"The limit of the cost {cost.name!r} must be a finite number, got {shown(cost.limit)}."
                )
        if self.within_uniform is not None:
            bits, factor = self.within_uniform
            _check_positive("the bits of within_uniform", bits)
            _check_positive("the factor of within_uniform", factor)
        if self.max_loss is not None and self.within_uniform is not None:
            raise ValueError("max_loss and within_uniform both bound the predicted loss; give one of them.")
        if (self.bit_operations is not None or self.mac_average_bits is not None) and self.macs is None:
            raise ValueError("bit_operations and mac_average_bits are counted from macs: give macs={group: count}.")
        if self.latency is not None and self.latency_table is None:
            raise ValueError("latency is added up from a table: give latency_table=LatencyTable.read(path).")

    @property
    def minimises_bytes(self) -> bool:
        """Whether the loss is bounded and bytes are what is minimised."""
        return self.max_loss is not None or self.within_uniform is not None

    def __repr__(self) -> str:
        """Name only what was given."""
        given = [f for f in fields(self) if getattr(self, f.name) != f.default and getattr(self, f.name) != ()]
        return f"Budget({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"


def _check_positive(name: str, value: float | None) -> None:
    """Refuse a bound that is not a positive finite number."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a positive number, got {shown(value)}.")
