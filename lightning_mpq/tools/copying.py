"""Copies of models that compute with their own weights, whatever functions the model holds on to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def copied(module: Module) -> Module:
    """Return a copy of a module with everything in it; tensors with a graph that it holds on to are copied without.

    ``copy.deepcopy`` takes functions as they are, so that a compiled ``forward``, as Lightning sets it on a module that
    was given to ``torch.compile``, or a hook such as ``lambda *given: self.keep(given)`` would go on working on the
    original. In the copy compiled methods are those before they were compiled, and functions that refer to parts of
    the original refer to those of the copy.

    Example:
        >>> def wrapped(layer):
        ...     own = layer.forward
        ...     layer.forward = lambda x: own(x)
        ...     return layer
        >>> twin = copied(wrapped(nn.Linear(2, 2)))
        >>> _ = nn.init.zeros_(twin.weight), nn.init.zeros_(twin.bias)
        >>> import torch
        >>> float(twin(torch.ones(1, 2)).abs().sum())
        0.0
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in _with_graph(part.__dict__):
            memo[id(value)] = value.detach().clone()
    twin = copy.deepcopy(module, memo)
    for part in module.modules():
        if id(part) in memo:
            _refer_to_copies(part.__dict__, memo[id(part)].__dict__, memo)
    return twin


def _with_graph(value: Any) -> Iterator[Tensor]:
    """Go through the tensors in containers that were computed from others, which ``copy.deepcopy`` refuses."""
    if isinstance(value, Tensor) and not value.is_leaf:
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _with_graph(each)


def _refer_to_copies(original: Mapping[Any, Any], own: dict[Any, Any], memo: dict[int, Any]) -> None:
    """Replace functions among the attributes, or hooks, of a copy that refer to parts of the original."""
    for name, value in original.items():
        if own.get(name) is value and isinstance(value, FunctionType):  # what copies itself may have made its own
            own[name] = _referring_to_copies(value, memo)
        elif isinstance(value, dict) and "hook" in str(name):
            _refer_to_copies(value, own[name], memo)


def _referring_to_copies(function: FunctionType, memo: dict[int, Any]) -> Any:
    """Return a function that does to the copy what the given one does to the original; the same if it does nothing."""
    before = getattr(function, "_torchdynamo_orig_callable", None)
    if isinstance(before, FunctionType):
        return _referring_to_copies(before, memo)
    if before is not None:
        return copy.deepcopy(before, memo)
    cells = function.__closure__ or ()
    own = tuple(_own_cell(cell, memo) for cell in cells)
    if all(new is old for new, old in zip(own, cells, strict=True)):
        return function
    rebound = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, own)
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__dict__.update(function.__dict__)
    return rebound


def _own_cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    """Return a cell with the copy of what a function refers to; the same cell if that is no part of the original."""
    try:
        content = cell.cell_contents
    except ValueError:  # nothing is in it yet
        return cell
    if id(content) in memo:
        return CellType(memo[id(content)])
    if isinstance(content, MethodType) and id(content.__self__) in memo:
        return CellType(MethodType(content.__func__, memo[id(content.__self__)]))
    if isinstance(content, FunctionType) and content.__closure__:
        own = _referring_to_copies(content, memo)
        return cell if own is content else CellType(own)
    return cell
