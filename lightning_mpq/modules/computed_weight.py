"""The weight that a packed layer computes when it is read: a tensor like any other, except that writes are errors.

It is made anew at each read (or is a cache beside the codes), so that whatever is written to it would be lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

_HARMLESS = {"requires_grad_", "detach_", "share_memory_", "retain_grad"}
"""In-place by name, and no write to the values."""
_WRITES = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")}
_WRITES |= {"__setitem__", "data.__set__"}


class ComputedWeight(Tensor):
    """A computed weight that refuses to be written to, as all views of it do; a copy is an ordinary tensor."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: object, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function on the ordinary tensors; what is a view of the weight is guarded again."""
        options = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):  # of an attribute, such as data
            name = f"{getattr(getattr(func, '__self__', None), '__name__', '')}.{name}"
        if _writes(name, options) and any(isinstance(each, cls) for each in _written(args, options)):
            raise RuntimeError(_refusal(name))
        with torch._C.DisableTorchFunctionSubclass():
            storages: set[int] = set()
            plain_args, plain_options = _plain(args, storages), _plain(options, storages)
            return _guarded(func(*plain_args, **plain_options), storages)

    @property
    def _is_param(self) -> bool:
        return False

    @_is_param.setter
    def _is_param(self, value: bool) -> None:
        """Become an ordinary Parameter: ``nn.Parameter(layer.weight)`` holds what it was given, and nothing is lost."""
        self.__class__ = nn.Parameter  # type: ignore[assignment]
        self._is_param = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return an ordinary tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return copy.deepcopy(_plain(self, set()), memo)


def computed_weight(weight: Tensor) -> Tensor:
    """Return a weight that refuses writes; as it is where the program is traced or compiled rather than run."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or _get_current_dispatch_mode() is not None
    return weight if traced or type(weight) is not Tensor else weight.as_subclass(ComputedWeight)


def _writes(name: str, options: Mapping[str, Any]) -> bool:
    in_place = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
    return in_place or name in _WRITES or options.get("out") is not None or options.get("inplace") is True


def _written(args: Any, options: Mapping[str, Any]) -> Iterator[Any]:
    """Yield what a function that writes writes to: its first argument, or what is named ``out``."""
    first = args[0] if args else next(iter(options.values()), None)
    for each in (options["out"],) if options.get("out") is not None else (first,):
        yield from each if isinstance(each, (tuple, list)) else (each,)


def _refusal(name: str) -> str:
    return (
        f"The weight of a packed layer is computed from its codes when it is read, so that what {name!r} writes to it "
        "would be lost. Compute with a copy, layer.weight.clone(); or change the float model (merge adapters, "
        "initialise, average) before it is quantized, or load it anew and quantize again."
    )


def _plain(value: Any, storages: set[int]) -> Any:
    """Return the same with ordinary tensors in the place of guarded ones; note whose memory they are."""
    if isinstance(value, ComputedWeight):
        storages.add(value.untyped_storage()._cdata)
        return value.as_subclass(Tensor)
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_plain(each, storages) for each in value)
    if isinstance(value, dict):
        return {key: _plain(each, storages) for key, each in value.items()}
    return value


def _guarded(value: Any, storages: set[int]) -> Any:
    if type(value) is Tensor:
        return value.as_subclass(ComputedWeight) if value.untyped_storage()._cdata in storages else value
    if type(value) in (tuple, list):
        return type(value)(_guarded(each, storages) for each in value)
    return value
