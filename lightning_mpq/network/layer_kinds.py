"""Which layer types can be quantized, and how each one uses its weight.

Everything else in the package sees a weight as rows (output channels) by columns (fan-in), and a layer
as an operation that is linear in its weight; this file is the only one that knows the layouts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from ..tools.changed_class import original_class
from .own_operation import apply_wrapped, is_plain, wrapped_class

Operation = Literal["linear", "convolution", "transposed", "lookup", "any", "nonlinear"]


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


def _rows_along(weight: Tensor, groups: int, dim: int) -> Tensor:
    return weight.movedim(dim, 0).reshape(weight.shape[dim], -1)


def _weight_along(rows: Tensor, shape: torch.Size, groups: int, dim: int) -> Tensor:
    moved = [shape[dim], *(size for axis, size in enumerate(shape) if axis != dim % len(shape))]
    return rows.reshape(moved).movedim(0, dim)


@dataclass(frozen=True)
class LayerKind:
    """How one layer type stores its weight.

    Attributes:
        to_rows: (weight, groups) to a [rows, columns] view or copy; a row is an output channel.
        from_rows: The inverse: (rows, weight shape, groups) to a weight.
        operation: How outputs depend on the weight. ``"linear"``: rows times vectors; ``"convolution"`` and
            ``"transposed"`` convolution; ``"lookup"`` of rows; ``"any"`` other way that is linear in the weight;
            ``"nonlinear"``: measured by differentiating the network along each candidate.
        parts: Equal blocks of rows that may be multiplied with different inputs (for convolutions: in each group).
        fused: Whether exported graphs have one operation for all that the module does, and no product by the weight.
    """

    to_rows: Callable[[Tensor, int], Tensor] = _same_rows
    from_rows: Callable[[Tensor, torch.Size, int], Tensor] = _same_weight
    operation: Operation = "linear"
    parts: int = 1
    fused: bool = False

    @classmethod
    def along(cls, output_dim: int, operation: Operation) -> LayerKind:
        """Return the kind whose output channels lie along a dimension of the weight."""
        if output_dim == 0:
            return cls(operation=operation)
        return cls(partial(_rows_along, dim=output_dim), partial(_weight_along, dim=output_dim), operation)


class ParameterView(nn.Module):
    """A weight that its module keeps under a name of its own, seen as a layer with one weight.

    It is no part of the model: calling it multiplies inputs with the weight, but the model never calls it.

    Attributes:
        weight: The Parameter itself, not a copy.
        owner: The module that holds it.
        attribute: Its name there, such as ``in_proj_weight``.
        kind: How the owner uses it.
    """

    weight: Tensor
    owner: nn.Module
    attribute: str
    kind: LayerKind

    def __init__(self, owner: nn.Module, attribute: str, kind: LayerKind) -> None:
        """Look at one parameter of a module."""
        super().__init__()
        self.__dict__.update(owner=owner, attribute=attribute, kind=kind)  # the owner is not a submodule
        parameter = owner._parameters[attribute]
        assert parameter is not None
        self.weight = parameter

    def forward(self, input: Tensor) -> Tensor:
        """Multiply vectors along the last dimension with the weight's rows."""
        return linear(input, weight_rows(self))


_CONVOLUTION = LayerKind(operation="convolution")
_TRANSPOSED = LayerKind(_transposed_rows, _transposed_weight, "transposed")
LAYER_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LayerKind(),
    nn.Conv1d: _CONVOLUTION,
    nn.Conv2d: _CONVOLUTION,
    nn.Conv3d: _CONVOLUTION,
    nn.ConvTranspose1d: _TRANSPOSED,
    nn.ConvTranspose2d: _TRANSPOSED,
    nn.ConvTranspose3d: _TRANSPOSED,
    nn.Embedding: LayerKind(operation="lookup"),
    nn.Bilinear: LayerKind(operation="any"),
    ParameterView: LayerKind(),
}
"""Types whose one weight is the parameter ``weight``, and how they use it (a `ParameterView` says it itself)."""
_ELSEWHERE = {("transformers.pytorch_utils", "Conv1D"): LayerKind.along(1, "linear")}
"""Types of packages that may not be there, by module and name: known once somebody else has imported them."""


def float_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the registered type that a layer behaves as, or None.

    A subclass counts when it inherits `forward` unchanged. One with a forward of its own may use its weight in any
    way, so it does not, unless it is seen, or was said, to wrap the parent's operation (`wrapped_class`), or names the
    type that it stands in for, as packed layers do.
    """
    stands_in_for: type[nn.Module] | None = getattr(type(module), "float_type", None)
    if stands_in_for in LAYER_KINDS:
        return stands_in_for
    _learn_of_others()
    for kind in LAYER_KINDS:
        if isinstance(module, kind) and is_plain(module, kind):
            return kind
    return wrapped_class(module)


def _learn_of_others() -> None:
    for (package, name), kind in _ELSEWHERE.items():
        found = getattr(sys.modules.get(package), name, None)
        if found is not None:
            LAYER_KINDS.setdefault(found, kind)


PACKED_NAMES = {
    "packed_codes", "scale", "zero_point", "dense_weight", "scheme", "weight_shape", "weight_dtype", "row_shape",
    "group", "memory", "kernel_choice", "input_scheme", "input_scale", "input_zero_point",
}  # fmt: skip
"""Attributes of packed layers, which a float layer must not use itself if it is to be packed."""
PACKED_METHODS = {
    "from_float", "_weight", "weight", "dequantize", "codes", "quantized_rows", "stored_tensors", "stored_bytes",
    "cached_bytes", "shape_error", "prefix", "layer_scheme", "set_inputs", "quantized_input",
    "_apply", "_save_to_state_dict", "_load_from_state_dict",
}  # fmt: skip
"""Their methods, which a subclass of a float layer must not define."""


def taken_name(module: nn.Module) -> str | None:
    """Return a name that packed layers need and a float layer, or its class, has for something else; None if none.

    Example:
        >>> class Scaled(nn.Linear):
        ...     scale = 3.0
        >>> taken_name(Scaled(2, 2)), taken_name(nn.Linear(2, 2))
        ('scale', None)
    """
    known, own = float_class(module), original_class(module)
    if known is None:
        return None
    held = {*module.__dict__, *module._parameters, *module._buffers, *module._modules} & PACKED_NAMES
    for base in own.__mro__[: own.__mro__.index(known)] if known in own.__mro__ else ():
        held |= set(vars(base)) & (PACKED_NAMES | PACKED_METHODS)
    return min(held, default=None)


def kind_of(module: nn.Module) -> LayerKind | None:
    """Return how a layer uses its weight; None if it is of no registered type."""
    if isinstance(module, ParameterView):
        return module.kind
    return LAYER_KINDS.get(float_class(module) or nn.Module)


def weight_rows(module: nn.Module, weight: Tensor | None = None) -> Tensor:
    """Return a layer's weight, or another tensor of its shape, as [rows, columns]."""
    value = module.weight if weight is None else weight
    assert isinstance(value, Tensor)
    return _known_kind(module).to_rows(value, int(getattr(module, "groups", 1)))


def rows_to_weight(module: nn.Module, rows: Tensor, shape: torch.Size) -> Tensor:
    """Return [rows, columns] in a layer's own weight layout of the given shape."""
    return _known_kind(module).from_rows(rows, shape, int(getattr(module, "groups", 1)))


def row_parts(module: nn.Module) -> int:
    """Return into how many blocks of rows with inputs of their own a weight falls."""
    return _known_kind(module).parts * int(getattr(module, "groups", 1))


def rows_and_columns(module: nn.Module) -> tuple[int, int]:
    """Return the shape of a layer's weight seen as rows by columns."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    shape = weight_rows(module, torch.empty(weight.shape, device="meta")).shape
    return shape[0], prod(shape[1:])


def _known_kind(module: nn.Module) -> LayerKind:
    kind = kind_of(module)
    if kind is None:
        raise TypeError(
            f"A layer of type {type(module).__name__} cannot be quantized; register_layer makes types known."
        )
    return kind


def apply_weight(module: nn.Module, weight: Tensor, *inputs: Tensor, **options: object) -> Tensor:
    """Run a layer's own operation with another weight and no bias: linear in ``weight``."""
    if (wrapped := wrapped_class(module)) is not None:
        return apply_wrapped(module, wrapped, weight, *inputs)
    parameters = {"weight": weight}
    if getattr(module, "bias", None) is not None:
        parameters["bias"] = torch.zeros_like(module.bias)  # type: ignore[arg-type]
    result = functional_call(module, parameters, inputs, options)
    assert isinstance(result, Tensor)
    return result
