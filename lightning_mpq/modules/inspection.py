"""What a packed model is: its packed layers, the policy that they follow, the bytes that it stores or keeps."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ..network.layer_kinds import rows_and_columns
from ..policy import BitPolicy
from ..tools.kinds import checked_kinds
from .linear import PackedLinear
from .packed import Memory, PackedLayer
from .quantized_operands import operand_schemes


class StoredBytes(NamedTuple):
    """What a model stores, each shared tensor counted once.

    Attributes:
        packed: Bytes of codes, scales and zero points, those of quantized inputs included.
        floating: Bytes of every other parameter and buffer.
        cached: Bytes kept in memory only and never saved: dequantized weights (``memory="fast"``), and weights in
            the layout of a kernel (`use_kernels`).
    """

    packed: int
    floating: int
    cached: int = 0

    @property
    def total(self) -> int:
        """Bytes on disk: packed plus floating."""
        return self.packed + self.floating


def packed_layers(model: nn.Module) -> dict[str, PackedLayer]:
    """Return the packed layers of a model by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLayer)}


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Return rows and columns of a layer's weight, packed or not."""
    return layer.row_shape if isinstance(layer, PackedLayer) else rows_and_columns(layer)


def policy_of(model: nn.Module) -> BitPolicy:
    """Return the policy that a packed model follows, read from its layers; empty if none is packed."""
    layers = packed_layers(model)
    first_of_tied: dict[int, str] = {}
    members: dict[str, list[str]] = {}
    for name, layer in layers.items():
        first = first_of_tied.setdefault(id(layer.packed_codes), name)
        members.setdefault(first if layer.group is None else layer.group, []).append(name)
    schemes = {group: layers[names[0]].layer_scheme for group, names in members.items()}
    for group, names in members.items():
        if other := [name for name in names if layers[name].layer_scheme != schemes[group]]:
            raise ValueError(
                f"Layers {names[0]!r} and {other[0]!r} of the group {group!r} have different schemes: "
                f"{schemes[group]} and {layers[other[0]].layer_scheme}."
            )
    return BitPolicy(schemes, {group: tuple(names) for group, names in members.items()}, operand_schemes(model) or None)


def stored_bytes(model: nn.Module) -> StoredBytes:
    """Count the bytes that a model stores, packed and otherwise; shared tensors once."""
    layers = packed_layers(model).values()
    packed = {id(value): value for layer in layers for value in layer.stored_tensors().values()}
    cached = {id(layer.dense_weight): layer.dense_weight for layer in layers if layer.dense_weight is not None}
    every = {id(value): value for value in [*model.parameters(), *model.buffers()]}
    other = {key: value for key, value in every.items() if key not in packed and key not in cached}
    counts = [sum(t.numel() * t.element_size() for t in part.values()) for part in (packed, other, cached)]
    by_kernels = {id(layer.packed_codes): layer.kernel_bytes for layer in layers if isinstance(layer, PackedLinear)}
    return StoredBytes(counts[0], counts[1], counts[2] + sum(by_kernels.values()))


@checked_kinds
def set_memory(model: nn.Module, memory: Memory) -> int:
    """Choose for all packed layers whether dequantized weights are kept, and return the bytes of the cache.

    Args:
        model: A packed model.
        memory: ``"packed"`` dequantizes at each call; ``"fast"`` keeps the weights beside the codes, at the
            cost in bytes that is returned.

    Example:
        >>> from lightning_mpq import WeightScheme
        >>> from lightning_mpq.modules import pack_model
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> _ = pack_model(net, BitPolicy({"0": WeightScheme(bits=3)}))
        >>> set_memory(net, "fast"), set_memory(net, "packed")
        (32, 0)
    """
    first: dict[int, PackedLayer] = {}
    for layer in packed_layers(model).values():
        twin = first.setdefault(id(layer.packed_codes), layer)
        if twin is layer or twin.weight_shape != layer.weight_shape or twin.weight_dtype != layer.weight_dtype:
            layer.memory = memory
        else:
            layer.dense_weight = twin.dense_weight
    return stored_bytes(model).cached
