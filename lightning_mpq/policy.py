"""What is decided: a policy that maps groups of layers to schemes. Plain JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .schemes import InputScheme, LayerScheme, WeightScheme
from .tools.checks import shown
from .tools.files import write_text_atomically
from .tools.kinds import checked_kinds
from .tools.reading import parse_json, read_text

POLICY_FORMAT = "lightning_mpq.policy"
POLICY_VERSION = 2


@dataclass(frozen=True, init=False)
class BitPolicy(Mapping[str, LayerScheme]):
    """The decision: which scheme each group gets, and which layers belong to the group. Plain JSON; hashable.

    Attributes:
        schemes: Group name to the scheme of its layers; where only that of their weights is given, inputs stay in
            float.
        layers: Group name to the qualified names of its layers.
        operands: Sum, average or product of attention between layers, as in ``"layer1.0.add0"`` (module, operation,
            number in its forward), to the scheme of what it reads. None: a sum or average of nothing but convolutions'
            outputs, the last of which has inputs with a range, reads 8 bits, so that it runs in integers as they do.

    Example:
        >>> policy = BitPolicy({"block": WeightScheme(bits=3)}, {"block": ("conv1", "conv2")})
        >>> policy.bits(), sorted(policy.by_layer())
        ({'block': 3}, ['conv1', 'conv2'])
    """

    schemes: Mapping[str, LayerScheme]
    layers: Mapping[str, tuple[str, ...]]
    operands: Mapping[str, InputScheme] | None

    @checked_kinds
    def __init__(
        self,
        schemes: Mapping[str, LayerScheme | WeightScheme],
        layers: Mapping[str, tuple[str, ...]] | None = None,
        operands: Mapping[str, InputScheme] | None = None,
    ) -> None:
        """A group without listed layers is the layer of that name; no layer may be decided twice."""
        for group, names in (layers or {}).items():
            if isinstance(names, str):
                raise ValueError(f"The layers of {group!r} must be a tuple of names, got {names!r}: give ({names!r},).")
        members = {name: tuple((layers or {}).get(name, (name,))) for name in schemes}
        owner: dict[str, str] = {}
        for group, names in members.items():
            for layer in names:
                if layer in owner:
                    raise ValueError(
                        f"Layer {layer!r} is in the groups {owner[layer]!r} and {group!r}; keep it in one."
                    )
                owner[layer] = group
        object.__setattr__(self, "schemes", {name: LayerScheme.of(scheme) for name, scheme in schemes.items()})
        object.__setattr__(self, "layers", members)
        for name, scheme in (operands or {}).items():
            if not isinstance(scheme, InputScheme) or not scheme.needs_range:
                raise ValueError(f"What {name!r} reads needs an InputScheme per tensor, got {shown(scheme)}.")
        object.__setattr__(self, "operands", None if operands is None else dict(operands))

    def __hash__(self) -> int:
        """Equal policies have equal hashes."""
        operands = None if self.operands is None else frozenset(self.operands.items())
        return hash((frozenset(self.schemes.items()), frozenset(self.layers.items()), operands))

    def __getitem__(self, group: str) -> LayerScheme:
        """Return the scheme of a group."""
        return self.schemes[group]

    def __iter__(self) -> Iterator[str]:
        """Iterate over group names."""
        return iter(self.schemes)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.schemes)

    def by_layer(self) -> dict[str, LayerScheme]:
        """Return layer name to scheme, in the order of the groups."""
        return {layer: self.schemes[group] for group, members in self.layers.items() for layer in members}

    def weights(self) -> dict[str, WeightScheme]:
        """Return layer name to the scheme of its weight, in the order of the groups."""
        return {layer: scheme.weight for layer, scheme in self.by_layer().items()}

    def bits(self) -> dict[str, int]:
        """Return group name to bits."""
        return {group: scheme.bits for group, scheme in self.schemes.items()}

    def inputs(self) -> dict[str, InputScheme]:
        """Return layer name to the scheme of its inputs, for layers whose inputs are quantized."""
        schemes = {layer: scheme.quantized_input for layer, scheme in self.by_layer().items()}
        return {layer: scheme for layer, scheme in schemes.items() if scheme is not None}

    def to_json(self) -> str:
        """Return the policy as JSON text that `from_json` reads back."""
        groups = {
            name: {"layers": list(self.layers[name]), **scheme.to_dict()} for name, scheme in self.schemes.items()
        }
        body: dict[str, Any] = {"format": POLICY_FORMAT, "version": POLICY_VERSION, "groups": groups}
        if self.operands is not None:
            body["operands"] = {name: asdict(scheme) for name, scheme in self.operands.items()}
        return json.dumps(body, indent=2)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the policy as a JSON file, whole or not at all.

        ``{"format": "lightning_mpq.policy", "version": 2, "groups": {name: {"layers": [names of layers], "weight":
        {"bits", "granularity", "grid", "clip", "scale_dtype", "rounding"}, "input": {"bits", "granularity",
        "symmetric", "clip"}}}}``; the fields are those of `WeightScheme` and `InputScheme`, and all but ``bits`` may be
        left out. Inputs that stay in float have ``"input": "float"``, or no entry. What sums and averages read may
        stand beside "groups" under ``"operands": {name: {"bits", ...}}``; ``{}`` keeps it all in float. Version 1,
        which has "scheme" instead of "weight" and "input", is read as well.
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
            return cls.from_json(read_text(Path(path)))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> BitPolicy:
        """Read a policy written by `to_json`.

        Raises:
            ValueError: If the text is not JSON, not a policy, or of an unknown version.
        """
        try:
            data = parse_json(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"A policy is JSON text; this is not: {error}.") from error
        if not isinstance(data, dict) or data.get("format") != POLICY_FORMAT:
            raise ValueError(f"Expected a policy with format {POLICY_FORMAT!r}, got other JSON.")
        if data.get("version") not in tuple(_GROUP_READERS):
            raise ValueError(
                f"Expected policy version {' or '.join(map(str, _GROUP_READERS))}, got {shown(data.get('version'))}."
            )
        if not isinstance(data.get("groups"), dict):
            raise ValueError(
                f"A policy has an object 'groups' with one entry a group, got {shown(data.get('groups'))}."
            )
        read = _GROUP_READERS[data["version"]]
        groups = {name: _group_from_dict(name, values, read) for name, values in data["groups"].items()}
        operands = data.get("operands")
        if operands is not None and not isinstance(operands, dict):
            raise ValueError(f"The 'operands' of a policy are an object of schemes by name, got {shown(operands)}.")
        return cls(
            schemes={name: scheme for name, (scheme, _) in groups.items()},
            layers={name: layers for name, (_, layers) in groups.items()},
            operands=None if operands is None else {n: InputScheme.from_dict(each) for n, each in operands.items()},
        )


def _version_1(values: Mapping[str, Any]) -> LayerScheme:
    """Return the scheme of a group as version 1 has it: that of its weights."""
    if "scheme" not in values:
        raise ValueError(f"it needs 'scheme', got only {sorted(values)}.")
    return LayerScheme(WeightScheme.from_dict(values["scheme"]))


def _version_2(values: Mapping[str, Any]) -> LayerScheme:
    return LayerScheme.from_dict({name: value for name, value in values.items() if name != "layers"})


_GROUP_READERS: dict[int, Callable[[Mapping[str, Any]], LayerScheme]] = {1: _version_1, POLICY_VERSION: _version_2}


def _group_from_dict(
    name: str, values: Any, read: Callable[[Mapping[str, Any]], LayerScheme]
) -> tuple[LayerScheme, tuple[str, ...]]:
    """Return scheme and layers of a group as they stand in a policy's JSON."""
    given = values if isinstance(values, dict) else {}
    layers = given.get("layers")
    if not isinstance(layers, list) or not all(isinstance(layer, str) for layer in layers):
        raise ValueError(f"The group {name!r} of a policy needs 'layers' as a list of names; got {shown(values)}.")
    try:
        return read(given), tuple(layers)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The group {name!r} of a policy: {error}") from error
