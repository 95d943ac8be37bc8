"""What a policy may cost: upper bounds, any number at once, or a loss that must not be exceeded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from pathlib import Path
from typing import Any

from ..groups.groups import LayerGroup
from ..schemes import LayerScheme
from ..tools.checks import check_list, check_mapping, check_positive, is_number, shown
from .latency_table import LatencyTable
from .workload import Workload

_OF_A_PASS = ("device_bytes", "bit_operations", "mac_average_bits")
"""Bounds on what a forward pass takes."""
CostFunction = Callable[[LayerGroup, LayerScheme], float]
_LIMITS = (
    "average_bits",
    "bytes",
    "largest_group_bytes",
    "file_bytes",
    "device_bytes",
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
        file_bytes: Bytes of the target's whole file, or of all in its folder: headers, graph and metadata included.
        file_rest: What of these no decision changes. The callback measures it by writing a file before anything is
            decided, where ``file_bytes`` needs it; ``lightning_mpq.targets.with_file_rest`` does that by hand.
        device_bytes: Bytes in memory while the model runs: ``bytes``, what the ``kernel`` keeps of weights beside them,
            the most that one layer reads, writes and dequantizes at once, and keys and values, for ``batch`` samples of
            ``context`` positions. What functions make that are no modules (the products of attention) is not seen.
        context: Positions of a sequence in ``device_bytes``; None: those of the batches.
        batch: Samples at once in ``device_bytes``; None: one.
        kernel: What multiplies by packed Linear layers, as for `use_kernels`: ``"plain"`` dequantizes at each call.
        bit_operations: Multiply-accumulates times weight bits times input bits, summed over a sample (BOPs).
        mac_average_bits: Average of the weight bits, weighted by multiply-accumulates.
        macs: Group name to multiply-accumulates of one forward pass, for the two above; None: those of ``workload``.
        activation_bits: Bits that inputs in float count as in ``bit_operations``. None: 8 where all stay in float (as a
            runtime may quantize them), 32 where some are quantized.
        latency: Milliseconds, added up over groups from ``latency_table``.
        latency_table: Milliseconds of each (group, scheme), or the file that holds them (`LatencyTable.read`).
        custom: Costs of the user's own.
        workload: What a forward pass takes. The callback measures it on a calibration batch where a bound needs it;
            `lightning_mpq.modules.workload.measured` does that for the steps by hand.
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
    file_bytes: float | None = None
    file_rest: int | None = None
    device_bytes: float | None = None
    context: int | None = None
    batch: int | None = None
    kernel: str = "plain"
    bit_operations: float | None = None
    mac_average_bits: float | None = None
    macs: Mapping[str, float] | None = None
    activation_bits: int | None = None
    latency: float | None = None
    latency_table: LatencyTable | str | Path | None = None
    custom: Sequence[CustomCost] = field(default=())
    workload: Workload | None = field(default=None)
    max_loss: float | None = None
    within_uniform: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        """Refuse budgets that mean nothing."""
        check_list("custom", self.custom, "[CustomCost(name, function, limit)]")
        object.__setattr__(self, "custom", tuple(self.custom))
        if other := [cost for cost in self.custom if not isinstance(cost, CustomCost)]:
            raise ValueError(
                f"custom must be a list of CustomCost(name, function, limit), got {shown(other[0])} in it."
            )
        if isinstance(self.latency_table, (str, Path)):
            object.__setattr__(self, "latency_table", LatencyTable.read(self.latency_table))
        elif not isinstance(self.latency_table, LatencyTable | None):
            raise ValueError(f"latency_table must be a LatencyTable or its file, got {shown(self.latency_table)}.")
        if self.macs is not None:
            check_mapping("macs", self.macs, {"head": 10_000})
        if not any(getattr(self, name) is not None for name in _LIMITS) and not any(
            cost.limit is not None for cost in self.custom
        ):
            raise ValueError(
                f"A budget needs at least one bound: give one of {', '.join(_LIMITS)}, or a custom cost with a limit."
            )
        for name in _LIMITS[:-1]:
            check_positive(name, bound := getattr(self, name))
            if bound is not None and not isinstance(bound, int):
                object.__setattr__(self, name, float(bound))
        for name in ("context", "batch", "activation_bits"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive integer, got {shown(value)}.")
        if self.device_bytes is None and not self.context is self.batch is None:
            raise ValueError("context and batch say what device_bytes is counted for; give device_bytes, or drop them.")
        for cost in self.custom:
            if cost.limit is not None and not (is_number(cost.limit) and isfinite(cost.limit)):
                raise ValueError(
                    f"The limit of the cost {cost.name!r} must be a finite number, got {shown(cost.limit)}."
                )
        if self.within_uniform is not None:
            given = self.within_uniform
            if not isinstance(given, Sequence) or len(given) != 2:
                raise ValueError(f"within_uniform must be a width and a factor such as (4, 1.5), got {shown(given)}.")
            bits, factor = given
            check_positive("the bits of within_uniform", bits)
            check_positive("the factor of within_uniform", factor)
        if self.max_loss is not None and self.within_uniform is not None:
            raise ValueError("max_loss and within_uniform both bound the predicted loss; give one of them.")
        if self.latency is not None and self.latency_table is None:
            raise ValueError("latency is added up from a table: give latency_table=LatencyTable.read(path).")

    @property
    def minimises_bytes(self) -> bool:
        """Whether the loss is bounded and bytes are what is minimised."""
        return self.max_loss is not None or self.within_uniform is not None

    @property
    def needs_workload(self) -> bool:
        """Whether a bound can only be counted once a forward pass was measured."""
        by_macs = self.macs is None and (self.bit_operations is not None or self.mac_average_bits is not None)
        return self.workload is None and (by_macs or self.device_bytes is not None)

    @property
    def needs_file_rest(self) -> bool:
        """Whether the bytes of a file can only be counted once one was written."""
        return self.file_bytes is not None and self.file_rest is None

    def without_passes(self) -> Budget | None:
        """Return the bounds that need no forward pass to be counted; None if there are none.

        Of a file only what candidates store is counted then.
        """
        if self.needs_file_rest:
            return replace(self, file_rest=0).without_passes()
        if not self.needs_workload:
            return self
        nothing: dict[str, Any] = dict.fromkeys((*_OF_A_PASS, "context", "batch"))
        try:
            return replace(self, **nothing)
        except ValueError:  # a budget bounds something
            return None

    def __repr__(self) -> str:
        """Name only what was given."""
        given = [f for f in fields(self) if getattr(self, f.name) != f.default and getattr(self, f.name) != ()]
        return f"Budget({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in given)})"
