"""How one weight tensor is quantized, and what its layer does with its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import ceil
from typing import Any, Literal, get_args

from .grids.registry import grid_named
from .tools.checks import check_one_of, shown

SCALE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
Rounding = Literal["nearest", "second_order"]
FLOAT: Literal["float"] = "float"
"""What stands for the scheme of inputs that are not quantized."""
INPUT_BITS = tuple(range(4, 9))
"""Widths that inputs may have."""
RangeChoice = Literal["mse", "percentile", "absmax"]


@dataclass(frozen=True)
class WeightScheme:
    """How one weight tensor is quantized: ``weight = scale * level(code)``, code in 0 .. 2**bits - 1.

    The weight is seen as rows (output channels) by columns (fan-in, kernel positions included).

    Attributes:
        bits: Bits per weight, 2..8.
        granularity: What shares one scale: ``"tensor"``, ``"channel"`` (a row), or an integer g for
            blocks of g consecutive columns within a row (the last block of a row may be shorter).
        grid: Where the levels lie. ``"symmetric"``: integers from -2**(bits-1), zero is a level.
            ``"asymmetric"``: as symmetric, shifted by a stored integer zero point. ``"half"``: levels
            +-1/2, +-3/2, ... with no zero (mid-rise), which spends all levels when there are few. ``"nf4"``:
            quantiles of a normal distribution, 4 bits. Others as `register_grid` made them known.
        clip: Range that a scale covers: ``"absmax"`` (everything), ``"mse"`` (least squared weight
            error over a set of ratios), ``"moment"`` (least squared error of the layer's output, found on
            calibration data), or a ratio of the absmax in (0, 1].
        scale_dtype: Type that scales are stored in. bfloat16 has the range of float32, so that no
            layer can under- or overflow; its short mantissa costs nothing, since weights are rounded
            against the scale as stored.
        rounding: ``"nearest"``, or ``"second_order"``: error feedback by the moment of the layer's inputs, found
            on calibration data.

    Raises:
        ValueError: If a field is outside of what is listed above.

    Example:
        >>> WeightScheme(bits=3).stored_bits(rows=16, columns=9)  # 144 codes and 16 scales
        688
    """

    bits: int
    granularity: Literal["tensor", "channel"] | int = "channel"
    grid: str = "symmetric"
    clip: Literal["absmax", "mse", "moment"] | float = "absmax"
    scale_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        """Refuse contradictions early, where the user wrote them."""
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {shown(self.bits)}.")
        block = self.granularity
        if block not in ("tensor", "channel") and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise ValueError(f"granularity must be 'tensor', 'channel' or a positive block length, got {shown(block)}.")
        if self.bits not in (known := grid_named(self.grid).bits):
            raise ValueError(
                f"The grid {self.grid!r} has levels for {', '.join(map(str, known))} bits, got {self.bits}."
            )
        ratio = self.clip if isinstance(self.clip, (int, float)) and not isinstance(self.clip, bool) else 0
        if self.clip not in ("absmax", "mse", "moment") and not 0 < ratio <= 1:
            raise ValueError(f"clip must be 'absmax', 'mse', 'moment' or a ratio in (0, 1], got {shown(self.clip)}.")
        check_one_of("scale_dtype", self.scale_dtype, SCALE_BITS)
        check_one_of("rounding", self.rounding, get_args(Rounding))

    @property
    def needs_inputs(self) -> bool:
        """Whether a weight can be rounded so only with calibration data at hand (see `round_candidates`)."""
        return self.clip == "moment" or self.rounding == "second_order"

    def __str__(self) -> str:
        """Return a short name such as ``3-bit half/channel``."""
        return f"{self.bits}-bit {self.grid}/{self.granularity}"

    def scale_count(self, rows: int, columns: int) -> int:
        """Return how many scales a weight of ``rows x columns`` stores."""
        if self.granularity == "tensor":
            return 1
        return rows if self.granularity == "channel" else rows * ceil(columns / self.granularity)

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits that a packed weight of ``rows x columns`` occupies, scales and zero points included."""
        scales = self.scale_count(rows, columns)
        return grid_named(self.grid).stored_bits(rows * columns, scales, self.bits, SCALE_BITS[self.scale_dtype])

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WeightScheme:
        """Build a scheme from plain JSON values.

        Raises:
            ValueError: If it is no object, a key is unknown or missing, or a value is not allowed.
        """
        return cls(**_checked(cls, values, "A scheme"))


@dataclass(frozen=True)
class InputScheme:
    """How the inputs of a layer are quantized: ``x = scale * (code - zero_point)``, code in 0 .. 2**bits - 1.

    Values beyond the range take the outermost code. Zero is always a level.

    Attributes:
        bits: Bits per value, 4..8.
        granularity: ``"tensor"``: one scale and zero point for all values, found on calibration data and stored with
            the layer. ``"token"``: every vector along the last dimension has its own, computed from its values when
            the layer runs; for Linear layers only, and nothing is stored.
        symmetric: Whether the range reaches as far below zero as above it. By default it reaches from the least
            value to the largest, and so begins at zero where no value is negative, as after a ReLU.
        clip: How the range of ``"tensor"`` is found: ``"mse"`` (least squared error, by how much the loss and the
            layer's output react to each value, over many ranges, the other two among them), ``"percentile"`` (all but a
            ten-thousandth of the values on either side), or ``"absmax"`` (everything). Of no meaning for ``"token"``,
            which has ``"absmax"``.

    Raises:
        ValueError: If a field is outside of what is listed above.

    Example:
        >>> str(InputScheme(bits=8)), str(InputScheme(bits=6, granularity="token"))
        ('8-bit inputs', '6-bit inputs/token')
    """

    bits: int
    granularity: Literal["tensor", "token"] = "tensor"
    symmetric: bool = False
    clip: RangeChoice = "mse"

    def __post_init__(self) -> None:
        """Refuse contradictions early, where the user wrote them."""
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or self.bits not in INPUT_BITS:
            raise ValueError(
                f"bits of inputs must be an integer from {INPUT_BITS[0]} to {INPUT_BITS[-1]}, got {shown(self.bits)}."
            )
        check_one_of("granularity of inputs", self.granularity, ("tensor", "token"))
        check_one_of("symmetric", self.symmetric, (True, False))
        check_one_of("clip of inputs", self.clip, get_args(RangeChoice))
        if self.granularity == "token":
            object.__setattr__(self, "clip", "absmax")

    @property
    def needs_range(self) -> bool:
        """Whether a scale and a zero point are found on calibration data and stored."""
        return self.granularity == "tensor"

    @property
    def stored_bits(self) -> int:
        """Bits that a layer stores for its inputs, for a scale in float32 and a zero point of 8 bits; 0 per token."""
        return 40 if self.needs_range else 0

    def __str__(self) -> str:
        """Return a short name such as ``8-bit inputs``."""
        return f"{self.bits}-bit inputs{'/token' * (self.granularity == 'token')}{'/symmetric' * self.symmetric}"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> InputScheme:
        """Build a scheme from plain JSON values.

        Raises:
            ValueError: If it is no object, a key is unknown or missing, or a value is not allowed.
        """
        return cls(**_checked(cls, values, "The scheme of inputs"))


@dataclass(frozen=True)
class LayerScheme:
    """How a layer is quantized: its weight, and its inputs.

    Attributes:
        weight: How its weight is quantized.
        input: How its inputs are: ``"float"``, not at all, or an `InputScheme`.

    Example:
        >>> scheme = LayerScheme(WeightScheme(bits=3), InputScheme(bits=8))
        >>> scheme.bits, scheme.input_bits, str(scheme)
        (3, 8, '3-bit symmetric/channel, 8-bit inputs')
    """

    weight: WeightScheme
    input: InputScheme | Literal["float"] = FLOAT

    def __post_init__(self) -> None:
        """Refuse what is no scheme."""
        if not isinstance(self.weight, WeightScheme):
            raise TypeError(f"Expected a WeightScheme, got {shown(self.weight)}.")
        if not isinstance(self.input, InputScheme) and self.input != FLOAT:
            raise ValueError(f"The inputs of a layer have an InputScheme, or input={FLOAT!r}; got {shown(self.input)}.")

    @classmethod
    def of(cls, scheme: WeightScheme | LayerScheme) -> LayerScheme:
        """Return the scheme of a layer of which only that of its weight may have been said."""
        return scheme if isinstance(scheme, cls) else cls(scheme)  # type: ignore[arg-type]

    @property
    def bits(self) -> int:
        """Bits per weight."""
        return self.weight.bits

    @property
    def input_bits(self) -> int | None:
        """Bits per value of the inputs; None where they stay in float."""
        return None if self.quantized_input is None else self.quantized_input.bits

    @property
    def quantized_input(self) -> InputScheme | None:
        """The scheme of the inputs; None where they stay in float."""
        return self.input if isinstance(self.input, InputScheme) else None

    def stored_bits(self, rows: int, columns: int) -> int:
        """Return the bits that the packed weight occupies, scales and zero points included."""
        return self.weight.stored_bits(rows, columns)

    def __str__(self) -> str:
        """Return the short name of the weight's scheme, and that of the inputs unless they stay in float."""
        return str(self.weight) if self.quantized_input is None else f"{self.weight}, {self.input}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        inputs = FLOAT if self.quantized_input is None else asdict(self.quantized_input)
        return {"weight": asdict(self.weight), "input": inputs}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerScheme:
        """Build a scheme from plain JSON values.

        Raises:
            ValueError: If it is no object, a key is unknown or missing, or a value is not allowed.
        """
        if not isinstance(values, Mapping) or not {"weight"} <= set(values) <= {"weight", "input"}:
            raise ValueError(
                f"The scheme of a layer is an object with the keys 'weight' and 'input'; got {shown(values)}."
            )
        given = values.get("input", FLOAT)
        inputs = InputScheme.from_dict(given) if isinstance(given, Mapping) else given
        return cls(WeightScheme.from_dict(values["weight"]), inputs)


def _checked(kind: type[WeightScheme] | type[InputScheme], values: Any, what: str) -> Mapping[str, Any]:
    """Return plain JSON values that name fields of a scheme, and no others."""
    known = {f.name for f in fields(kind)}
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} is an object with the keys {', '.join(sorted(known))}; got {shown(values)}.")
    if unknown := set(values) - known:
        others = ", ".join(shown(key).strip("'") for key in sorted(unknown)[:8])
        raise ValueError(f"{what} has the keys {', '.join(sorted(known))}; got {others} as well.")
    if "bits" not in values:
        raise ValueError(f"{what} needs the key 'bits', got only {shown(sorted(values))}.")
    return values
