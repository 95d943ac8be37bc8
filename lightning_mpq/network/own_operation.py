"""Subclasses that wrap their parent's operation: what its weight is really multiplied with.

A Conv2d that pads in its ``forward``, an Embedding that scales what it looks up: the weight is used once, by the very
function that the parent would call. That function's calls show what the module's own calls do not: its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..tools.attributes import shadowed
from .modes import evaluating
from .products import input_and_weight, product_of

OPERATIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Linear: torch.nn.functional.linear,
    nn.Conv1d: torch.nn.functional.conv1d,
    nn.Conv2d: torch.nn.functional.conv2d,
    nn.Conv3d: torch.nn.functional.conv3d,
    nn.Embedding: torch.nn.functional.embedding,
}
"""Layer type to the function that its weight is given to."""
DECLARED: dict[type[nn.Module], type[nn.Module]] = {}
"""Types that the user said to wrap the operation of another, and which."""
_GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
_TRIED: WeakKeyDictionary[nn.Module, tuple[type[nn.Module], type[nn.Module] | None]] = WeakKeyDictionary()


class OwnOperation(TorchFunctionMode):
    """Sees the calls of a layer type's function with a module's own weight, and may replace their outputs."""

    def __init__(self, module: nn.Module, kind: type[nn.Module], on_call: Callable[[Tensor, Tensor], Tensor]) -> None:
        """Watch one module; ``on_call(inputs, output)`` returns what takes the output's place."""
        super().__init__()
        self._module, self._kind, self._on_call = module, kind, on_call
        self.other_uses = 0
        self.with_bias: Tensor | None = None
        self._product: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, and report it if it is the one."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        weight, bias = self._module.weight, getattr(self._module, "bias", None)
        assert isinstance(weight, Tensor)
        given = list(_flat((*args, *kwargs.values())))
        if (
            func in _SUMS
            and bias is not None
            and any(x is bias for x in given)
            and any(x is self._product for x in given)
        ):
            self.with_bias = output
        uses = [value for value in given if value is weight or _is_transpose(value, weight)]
        if not uses:
            return output
        inputs = self._inputs(func, args, kwargs, weight)
        if inputs is not None and len(uses) == 1:
            self._product = self._on_call(inputs, output)
            return self._product
        # sizes and types are nobody's business, and a transpose is not until somebody uses it
        if isinstance(output, Tensor) and output is not weight and not _is_transpose(output, weight):
            self.other_uses += 1
        return output

    def _inputs(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], weight: Tensor) -> Tensor | None:
        """Return what the weight is given with, in the operation; None in any other function."""
        if self._kind is nn.Linear:
            product = product_of(func, args, kwargs)
            ours = product is not None and (product[1] is weight or _is_same(product[1], weight))
            return product[0] if product is not None and ours else None
        if func is not OPERATIONS[self._kind]:
            return None
        inputs, used = input_and_weight(args, kwargs)
        return inputs if used is weight and _same_geometry(self._module, self._kind, args, kwargs) else None


_SUMS = (torch.add, Tensor.add, Tensor.__add__, Tensor.add_, Tensor.__iadd__)


def _is_same(value: Tensor, weight: Tensor) -> bool:
    """Tell whether a tensor looks at all of a weight as it is."""
    own = weight if weight._base is None else weight._base
    place = (weight.shape, weight.stride(), weight.storage_offset())
    return value._base is own and (value.shape, value.stride(), value.storage_offset()) == place


def _is_transpose(value: Any, weight: Tensor) -> bool:
    """Tell whether a value looks at a matrix the other way round."""
    return isinstance(value, Tensor) and value.dim() == weight.dim() == 2 and _is_same(value.mT, weight)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, (tuple, list)) else (value,)


def wrapped_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the layer type whose operation a module of another ``forward`` makes with its weight, or None.

    A subclass is tried out on inputs without values (on the meta device): it must give its weight to the parent's
    function once, with the strides and paddings that its attributes say, and to nothing else. What it does before is
    its own affair; what it does after is too, unless the operation has a bias, which would be corrected by the
    outputs.
    """
    declared = declared_class(module)
    if declared is not None or "packed_codes" in module._buffers:
        return declared
    kind = next((kind for kind in OPERATIONS if isinstance(module, kind)), None)
    if kind is None or is_plain(module, kind):
        return None
    own, found = _TRIED.get(module, (None, None))
    if found is None and own is not type(module):  # what was seen once holds while its weight is computed, too
        found = kind if _wraps(module, kind) else None
        _TRIED[module] = type(module), found
    return found


def declared_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the layer type whose operation the user said that a module wraps, or None."""
    return next((DECLARED[base] for base in type(module).__mro__ if base in DECLARED), None)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module computes as a layer type does, nothing of it being defined anew."""
    own = type(module)
    return own.forward is kind.forward and getattr(own, "_conv_forward", None) is getattr(kind, "_conv_forward", None)


def operand(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], otherwise: Tensor) -> Tensor:
    """Return what a module's weight is multiplied with when it is called; ``otherwise`` if it wraps nothing."""
    kind = wrapped_class(module)
    if kind is None or "packed_codes" in module._buffers:
        return otherwise
    found = [otherwise]

    def keep(inputs: Tensor, output: Tensor) -> Tensor:
        found.append(inputs)
        return output

    with OwnOperation(module, kind, keep):
        type(module).forward(module, *args, **kwargs)
    return found[-1].detach()


def apply_wrapped(module: nn.Module, kind: type[nn.Module], weight: Tensor, inputs: Tensor) -> Tensor:
    """Return the operation that a module wraps, with another weight and no bias."""
    geometry = [getattr(module, name) for name in _GEOMETRY] if kind not in (nn.Linear, nn.Embedding) else []
    return OPERATIONS[kind](inputs, weight, *([None, *geometry] if geometry else []))


def _wraps(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Try a module on inputs without values."""
    tensors = {**module._parameters, **module._buffers}
    if not isinstance(tensors.get("weight"), nn.Parameter):
        return False
    meta = {name: value.detach().to("meta") for name, value in tensors.items() if value is not None}
    for inputs in _inputs_to_try(module, kind, meta["weight"].dtype):
        outputs: list[Tensor] = []

        def keep(inputs: Tensor, output: Tensor, outputs: list[Tensor] = outputs) -> Tensor:
            outputs.append(output)
            return output

        operation = OwnOperation(module, kind, keep)
        try:
            with shadowed(module, **meta), evaluating(module), torch.no_grad(), operation:
                result = type(module).forward(module, inputs)
        except Exception:  # noqa: BLE001, S112 - whatever a forward of somebody's own may raise
            continue
        alone = len(outputs) == 1 and not operation.other_uses
        return alone and (
            getattr(module, "bias", None) is None or result is outputs[0] or result is operation.with_bias
        )
    return False


def _inputs_to_try(module: nn.Module, kind: type[nn.Module], dtype: torch.dtype) -> list[Tensor]:
    if kind is nn.Embedding:
        return [torch.empty(2, 3, dtype=torch.long, device="meta")]
    if kind is nn.Linear:
        shapes = [(2, 3, int(module.in_features)), (2, int(module.in_features))]  # type: ignore[arg-type]
    else:
        reach = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]  # type: ignore[arg-type]
        shapes = [(2, int(module.in_channels), *(max(16, 2 * size) for size in reach))]  # type: ignore[arg-type]
    return [torch.empty(shape, dtype=dtype, device="meta") for shape in shapes]


def _same_geometry(module: nn.Module, kind: type[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether a convolution is called with the strides and paddings that its module's attributes say."""
    if kind in (nn.Linear, nn.Embedding):
        return True
    dimensions = len(module.kernel_size)  # type: ignore[arg-type]

    def spread(value: Any) -> Any:
        return value if isinstance(value, str) else (value,) * dimensions if isinstance(value, int) else tuple(value)

    for place, (name, default) in enumerate(_GEOMETRY.items(), start=3):
        given = kwargs.get(name, args[place] if len(args) > place else default)
        if spread(given) != spread(getattr(module, name)):
            return False
    return bool(module.padding_mode == "zeros")
