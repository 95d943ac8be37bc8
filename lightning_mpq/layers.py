"""Which layer types can be quantized, and how each one uses its weight.

Everything else in the package sees a weight as rows (output channels) by columns (fan-in), and a layer
as an operation that is linear in its weight; this file is the only one that knows the layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call


def _same_rows(weight: Tensor, groups: int) -> Tensor:
    return weight.reshape(weight.shape[0], -1)


def _same_weight(rows: Tensor, shape: torch.Size, groups: int) -> Tensor:
    return rows.reshape(shape)


def _transposed_rows(weight: Tensor, groups: int) -> Tensor:
    """[groups * in, out, *kernel] -> [groups * out, in * kernel]: rows are output channels."""
    blocks = weight.unflatten(0, (groups, -1)).transpose(1, 2)
    return blocks.reshape(groups * weight.shape[1], -1)


def _transposed_weight(rows: Tensor, shape: torch.Size, groups: int) -> Tensor:
    blocks = rows.reshape(groups, shape[1], shape[0] // groups, *shape[2:])
    return blocks.transpose(1, 2).reshape(shape)


@dataclass(frozen=True)
class LayerKind:
    """How one layer type stores its weight.

    Attributes:
        to_rows: (weight, groups) to a [rows, columns] view or copy; a row is an output channel.
        from_rows: The inverse: (rows, weight shape, groups) to a weight.
    """

    to_rows: Callable[[Tensor, int], Tensor] = _same_rows
    from_rows: Callable[[Tensor, torch.Size, int], Tensor] = _same_weight


_TRANSPOSED = LayerKind(_transposed_rows, _transposed_weight)
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LayerKind(),
    nn.Conv1d: LayerKind(),
    nn.Conv2d: LayerKind(),
    nn.Conv3d: LayerKind(),
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.Embedding: LayerKind(),
}


def float_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the registered type that a layer behaves as, or None.

    A subclass counts when it inherits `forward` unchanged; one with a forward of its own may use its
    weight in any way, so it does not.
    """
    for kind in LAYER_KINDS:
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return kind
    return None


def weight_rows(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """Return a layer's weight, or another tensor of its shape, as [rows, columns]."""
    kind = float_class(module)
    if kind is None:
        raise TypeError(f"A layer of type {type(module).__name__} cannot be quantized.")
    value = module.weight if weight is None else weight
    assert isinstance(value, Tensor)
    return LAYER_KINDS[kind].to_rows(value, int(getattr(module, "groups", 1)))


def rows_to_weight(module: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """Return [rows, columns] in a layer's own weight layout of the given shape."""
    kind = float_class(module)
    if kind is None:
        raise TypeError(f"A layer of type {type(module).__name__} cannot be quantized.")
    return LAYER_KINDS[kind].from_rows(rows, shape, int(getattr(module, "groups", 1)))


def rows_and_columns(module: nn.Module) -> tuple[int, int]:
    """Return the shape of a layer's weight seen as rows by columns."""
    shape = module.weight.shape
    assert isinstance(shape, torch.Size)
    transposed = LAYER_KINDS.get(float_class(module) or nn.Module) is _TRANSPOSED
    rows = shape[1] * int(module.groups) if transposed else shape[0]  # type: ignore[arg-type]
    return rows, prod(shape) // max(rows, 1)


def apply_weight(module: nn.Module, weight: Tensor, *inputs: Tensor, **options: object) -> Tensor:
    """Run a layer's own operation with another weight and no bias: linear in ``weight``."""
    parameters = {"weight": weight}
    if getattr(module, "bias", None) is not None:
        parameters["bias"] = torch.zeros_like(module.bias)  # type: ignore[arg-type]
    result = functional_call(module, parameters, inputs, options)
    assert isinstance(result, Tensor)
    return result
