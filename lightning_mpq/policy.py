"""What is decided: a scheme for one weight tensor, and a policy that maps groups to schemes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import ceil
from pathlib import Path
from typing import Any, Literal

from .tools.files import write_text_atomically

Grid = Literal["symmetric", "asymmetric", "half"]
GRIDS: tuple[Grid, ...] = ("symmetric", "asymmetric", "half")
SCALE_BITS = {"bfloat16": 16, "float16": 16, "float32": 32}
ZERO_POINT_BITS = 8
POLICY_FORMAT = "lightning_mpq.policy"
POLICY_VERSION = 1


@dataclass(frozen=True)
class WeightScheme:
    """How one weight tensor is quantized: ``weight = scale * (code - offset)``, code in 0 .. 2**bits - 1.

    The weight is seen as rows (output channels) by columns (fan-in, kernel positions included).

    Attributes:
        bits: Bits per weight, 2..8.
        granularity: What shares one scale: ``"tensor"``, ``"channel"`` (a row), or an integer g for
            blocks of g consecutive columns within a row (the last block of a row may be shorter).
        grid: Where the levels lie. ``"symmetric"``: integers from -2**(bits-1), zero is a level.
            ``"asymmetric"``: as symmetric, shifted by a stored integer zero point. ``"half"``: levels
            +-1/2, +-3/2, ... with no zero, which spends all levels when there are few.
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
    grid: Grid = "symmetric"
    clip: Literal["absmax", "mse", "moment"] | float = "absmax"
    scale_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    rounding: Literal["nearest", "second_order"] = "nearest"

    def __post_init__(self) -> None:
        """Refuse contradictions early, where the user wrote them."""
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be an integer from 2 to 8, got {self.bits!r}.")
        block = self.granularity
        if block not in ("tensor", "channel") and (isinstance(block, bool) or not isinstance(block, int) or block < 1):
            raise ValueError(f"granularity must be 'tensor', 'channel' or a positive block length, got {block!r}.")
        if self.grid not in GRIDS:
            raise ValueError(f"grid must be one of {', '.join(GRIDS)}, got {self.grid!r}.")
        clip_is_ratio = isinstance(self.clip, (int, float)) and not isinstance(self.clip, bool)
        if self.clip not in ("absmax", "mse", "moment") and not (clip_is_ratio and 0 < float(self.clip) <= 1):
            raise ValueError(f"clip must be 'absmax', 'mse', 'moment' or a ratio in (0, 1], got {self.clip!r}.")
        if self.scale_dtype not in tuple(SCALE_BITS):  # a list, say, could not be looked up
            raise ValueError(f"scale_dtype must be one of {', '.join(SCALE_BITS)}, got {self.scale_dtype!r}.")
        if self.rounding not in ("nearest", "second_order"):
            raise ValueError(f"rounding must be 'nearest' or 'second_order', got {self.rounding!r}.")

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
        """Return the bits that a packed weight of ``rows x columns`` occupies, scales and zero points included.

        Codes are packed eight at a time into ``bits`` bytes, so that only the last block is padded.
        """
        code_bits = ceil(rows * columns / 8) * 8 * self.bits
        bits_per_scale = SCALE_BITS[self.scale_dtype] + (ZERO_POINT_BITS if self.grid == "asymmetric" else 0)
        return code_bits + self.scale_count(rows, columns) * bits_per_scale

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WeightScheme:
        """Build a scheme from plain JSON values.

        Raises:
            ValueError: If it is no object, a key is unknown or missing, or a value is not allowed.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping):
            raise ValueError(f"A scheme is an object with the keys {', '.join(sorted(known))}; got {values!r}.")
        if unknown := set(values) - known:
            raise ValueError(
                f"A scheme has the keys {', '.join(sorted(known))}; got {', '.join(sorted(unknown))} as well."
            )
        if "bits" not in values:
            raise ValueError(f"A scheme needs the key 'bits', got only {sorted(values)}.")
        return cls(**values)


@dataclass(frozen=True)
class BitPolicy(Mapping[str, WeightScheme]):
    """The decision: which scheme each group gets, and which layers belong to the group. Plain JSON.

    Attributes:
        schemes: Group name to scheme.
        layers: Group name to the qualified names of its layers.

    Example:
        >>> policy = BitPolicy({"block": WeightScheme(bits=3)}, {"block": ("conv1", "conv2")})
        >>> policy.bits(), sorted(policy.by_layer())
        ({'block': 3}, ['conv1', 'conv2'])
    """

    schemes: Mapping[str, WeightScheme]
    layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A group without listed layers is the layer of that name; no layer may be decided twice."""
        layers = {name: tuple(self.layers.get(name, (name,))) for name in self.schemes}
        owner: dict[str, str] = {}
        for group, members in layers.items():
            for layer in members:
                if layer in owner:
                    raise ValueError(
                        f"Layer {layer!r} is in the groups {owner[layer]!r} and {group!r}; keep it in one."
                    )
                owner[layer] = group
        object.__setattr__(self, "schemes", dict(self.schemes))
        object.__setattr__(self, "layers", layers)

    def __getitem__(self, group: str) -> WeightScheme:
        """Return the scheme of a group."""
        return self.schemes[group]

    def __iter__(self) -> Iterator[str]:
        """Iterate over group names."""
        return iter(self.schemes)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.schemes)

    def by_layer(self) -> dict[str, WeightScheme]:
        """Return layer name to scheme, in the order of the groups."""
        return {layer: self.schemes[group] for group, members in self.layers.items() for layer in members}

    def bits(self) -> dict[str, int]:
        """Return group name to bits."""
        return {group: scheme.bits for group, scheme in self.schemes.items()}

    def to_json(self) -> str:
        """Return the policy as JSON text that `from_json` reads back."""
        groups = {
            name: {"layers": list(self.layers[name]), "scheme": asdict(scheme)} for name, scheme in self.schemes.items()
        }
        return json.dumps({"format": POLICY_FORMAT, "version": POLICY_VERSION, "groups": groups}, indent=2)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the policy as a JSON file, whole or not at all.

        ``{"format": "lightning_mpq.policy", "version": 1, "groups": {name: {"layers": [names of layers], "scheme":
        {"bits", "granularity", "grid", "clip", "scale_dtype", "rounding"}}}}``; the fields of a scheme are those of
        `WeightScheme`, and all but ``bits`` may be left out.
        """
        return write_text_atomically(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BitPolicy:
        """Read a policy that `save` wrote, or that was written by hand in the same form.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If it is no policy; the message names the file.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> BitPolicy:
        """Read a policy written by `to_json`.

        Raises:
            ValueError: If the text is not JSON, not a policy, or of an unknown version.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A policy is JSON text; this is not: {error}.") from error
        if not isinstance(data, dict) or data.get("format") != POLICY_FORMAT:
            raise ValueError(f"Expected a policy with format {POLICY_FORMAT!r}, got other JSON.")
        if data.get("version") != POLICY_VERSION:
            raise ValueError(f"Expected policy version {POLICY_VERSION}, got {data.get('version')!r}.")
        if not isinstance(data.get("groups"), dict):
            raise ValueError(f"A policy has an object 'groups' with one entry a group, got {data.get('groups')!r}.")
        groups = {name: _group_from_dict(name, values) for name, values in data["groups"].items()}
        return cls(
            schemes={name: scheme for name, (scheme, _) in groups.items()},
            layers={name: layers for name, (_, layers) in groups.items()},
        )


def _group_from_dict(name: str, values: Any) -> tuple[WeightScheme, tuple[str, ...]]:
    """Return scheme and layers of a group as they stand in a policy's JSON."""
    given = values if isinstance(values, dict) else {}
    layers = given.get("layers")
    if "scheme" not in given or not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(
            f"The group {name!r} of a policy needs 'scheme', and 'layers' as a list of names; got {values!r}."
        )
    try:
        return WeightScheme.from_dict(given["scheme"]), tuple(layers)
    except ValueError as error:
        raise ValueError(f"The group {name!r} of a policy: {error}") from error
