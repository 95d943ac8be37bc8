"""What decides a module's outputs beside weights and code: plain attributes, functions it was given, forward hooks."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import partial
from hashlib import sha256
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, Enum)
_OF_OTHERS = ("torch", "lightning", "pytorch_lightning")
"""Packages whose modules keep under private names what happens to them, and not what they are."""
_DEPTH = 4


def describe_attributes(model: nn.Module) -> list[object]:
    """Return what every module of a model holds beside modules, parameters and buffers, as values with a stable text.

    Metrics are left out: what they hold changes with what was validated before.
    """
    return [
        [name, _own(module)]
        for name, module in model.named_modules()
        if not type(module).__module__.startswith("torchmetrics")
    ]


def describe_function(value: Any, depth: int = _DEPTH) -> object:
    """Return a function by its code, defaults and captured values; None if it is none whose code can be seen."""
    code = getattr(value, "__code__", None)
    if not isinstance(code, CodeType):
        return None
    cells = [
        _described(cell.cell_contents, depth - 1) for cell in getattr(value, "__closure__", None) or () if _full(cell)
    ]
    defaults = [getattr(value, "__defaults__", None), getattr(value, "__kwdefaults__", None)]
    return [_code(code), cells, _described(defaults, depth - 1)]


def _own(module: nn.Module) -> list[object]:
    private = any(kind.__module__.partition(".")[0] in _OF_OTHERS for kind in type(module).__mro__[:-2])
    held = [
        [name, _described(value, _DEPTH)]
        for name, value in sorted(vars(module).items())
        if name not in _OF_EVERY_MODULE and not (name.startswith("_") and private)
    ]
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [held, [_described(hook, _DEPTH) for hook in hooks]]


def _described(value: Any, depth: int) -> object:
    """Return a value in words that are the same in every process; what cannot be seen counts by its type."""
    if isinstance(value, _SCALARS):
        return repr(value)
    if isinstance(value, Tensor):
        return _values(value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if depth <= 0 or isinstance(value, nn.Module):  # which is in the tree
        return kind
    if isinstance(value, (list, tuple)):
        return [kind, *(_described(item, depth - 1) for item in value)]
    if isinstance(value, (set, frozenset)):
        return [kind, sorted(str(_described(item, depth - 1)) for item in value)]
    if isinstance(value, Mapping):
        return [kind, *([_described(key, depth - 1), _described(item, depth - 1)] for key, item in value.items())]
    if isinstance(value, partial):
        return [kind, *(_described(part, depth - 1) for part in (value.func, value.args, value.keywords))]
    if (function := describe_function(value, depth)) is not None:
        return [function, _described(getattr(value, "__self__", None), 1)]
    if isinstance(value, type) or callable(value):
        return [kind, getattr(value, "__module__", None), getattr(value, "__qualname__", None)]
    plain = {name: held for name, held in getattr(value, "__dict__", {}).items() if isinstance(held, _SCALARS)}
    return [kind, _described(plain, 2)]


def _values(tensor: Tensor) -> list[object]:
    """Return type, shape and a hash of the values, where there are any that lie densely."""
    seen: list[object] = [str(tensor.dtype), list(tensor.shape)]
    if tensor.is_meta or tensor.layout is not torch.strided or not tensor.numel():
        return seen
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [*seen, sha256(plain.numpy().tobytes()).hexdigest()]


def _code(code: CodeType) -> list[object]:
    constants = [_code(each) if isinstance(each, CodeType) else repr(each) for each in code.co_consts]
    return [code.co_name, code.co_code.hex(), constants, repr(code.co_names)]


def _full(cell: Any) -> bool:
    """Tell whether a captured name has a value yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
