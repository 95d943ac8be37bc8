"""Layers that share one decision, and the groups of a whole model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from ..grids.base import ALL_BITS
from ..network.named_weights import named_layers
from ..schemes import LayerScheme, WeightScheme
from .coverage import Coverage


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose weights share one decision.

    Attributes:
        name: Name of the group: the layer's own, or the one the user gave.
        layers: Qualified names of its layers.
        shapes: (rows, columns) of each distinct weight; a tied weight stands here once.
        bits: Widths that the rules allow, ascending.
        block: Length of the blocks of columns that are offered beside channels to share a scale; None for layers that
            are no wide matrices.
        inputs: What may share the range of quantized inputs in all its layers (see `InputScheme`); nothing
            where inputs of some layer cannot be quantized.
    """

    name: str
    layers: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    bits: tuple[int, ...] = ALL_BITS
    block: int | None = None
    inputs: tuple[str, ...] = ()

    @property
    def weight_count(self) -> int:
        """Number of weights, a tied one counted once."""
        return sum(rows * columns for rows, columns in self.shapes)

    def stored_bits(self, scheme: LayerScheme | WeightScheme) -> int:
        """Bits that the group occupies under a scheme, scales and zero points included, those of inputs too."""
        inputs = LayerScheme.of(scheme).quantized_input
        of_inputs = 0 if inputs is None else len(self.layers) * inputs.stored_bits
        return of_inputs + sum(scheme.stored_bits(rows, columns) for rows, columns in self.shapes)


@dataclass(frozen=True)
class LayerGroups(Sequence[LayerGroup]):
    """The groups of a model, and what stays in float.

    Attributes:
        groups: The groups, in the order of their first layer.
        left_in_float: Layer name to the reason why it is not quantized.
        float_bytes: Bytes of every parameter and buffer that stays as it is and counts in a budget.
        unused_bytes: Bytes of the weights that no output is computed with, which count in no budget.
        coverage: How many of the model's parameters the groups hold; None where nobody counted.
    """

    groups: tuple[LayerGroup, ...]
    left_in_float: Mapping[str, str] = field(default_factory=dict)
    float_bytes: int = 0
    unused_bytes: int = 0
    coverage: Coverage | None = None

    def __getitem__(self, index: int) -> LayerGroup:  # type: ignore[override]
        """Return one group."""
        return self.groups[index]

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.groups)

    def __iter__(self) -> Iterator[LayerGroup]:
        """Iterate over the groups."""
        return iter(self.groups)

    def without(self, model: nn.Module, names: Collection[str], reason: str) -> LayerGroups:
        """Return the same with some groups left in float, which then count in no budget."""
        named = named_layers(model)
        left = {layer: named[layer] for group in self if group.name in names for layer in group.layers}
        return replace(
            self,
            groups=tuple(group for group in self if group.name not in names),
            left_in_float={**self.left_in_float, **dict.fromkeys(left, reason)},
            unused_bytes=self.unused_bytes + weight_bytes(left),
        )


def weight_bytes(layers: Mapping[str, nn.Module]) -> int:
    """Return the bytes of the weights of layers, shared ones once."""
    weights = {id(layer.weight): layer.weight for layer in layers.values() if isinstance(layer.weight, Tensor)}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())
