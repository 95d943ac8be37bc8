"""Which weights a model computes its outputs with, and which only lie in it: a teacher, a metric's own network, ..."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..tools.distributed import errors_shared, gather
from .batches import tensors_of
from .calibration import Calibration
from .hooks import hooked
from .isolation import isolated
from .named_weights import held_by


def unused_weights(calibration: Calibration, layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the layers whose weights no forward pass over the batches computes with.

    A weight is used where its layer is called, or where any operation on it gives values of its own: attention,
    recurrent layers and functional calls call no layer. Experts that are called on nothing are not used. It takes one
    pass over the first batch where that uses everything, and over further batches otherwise.

    Where torch.distributed is in use, every process calls this; a weight that one of them uses is used.

    Args:
        calibration: The model, left as it was, and its batches.
        layers: Name to layer, or view.
    """
    used: set[str] = set()
    uses = _Uses({id(layer.weight): layer.weight for layer in layers.values() if isinstance(layer.weight, Tensor)})

    def called(name: str, module: nn.Module, args: object, output: object) -> None:
        if tensors := tensors_of(output):
            uses.found |= {id(layers[name].weight)} if any(tensor.numel() for tensor in tensors) else set()

    owners = [(held_by(layer)[0], partial(called, name)) for name, layer in layers.items()]
    with errors_shared(), isolated(calibration.model), torch.no_grad(), hooked(after=owners):
        for number, batch in enumerate(calibration.filled(), start=1):
            with uses:
                calibration.forward(batch, number)
            used = {name for name, layer in layers.items() if id(layer.weight) in uses.found}
            if len(used) == len(layers):
                break
    everywhere = set(chain.from_iterable(gather(sorted(used))))
    return [name for name in layers if name not in everywhere]


class _Uses(TorchDispatchMode):
    """Sees every operation, however it is called, and notes of which weights it makes values that are not views."""

    supports_higher_order_operators = True

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.found: set[int] = set()
        self._of_storage: dict[int, set[int]] = {}
        for key, weight in weights.items():
            self._of_storage.setdefault(_storage(weight), set()).add(key)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = {_storage(tensor) for tensor in _tensors(result) if tensor.numel()}
        for tensor in chain(_tensors(args), _tensors(tuple((kwargs or {}).values()))):
            if made - {(storage := _storage(tensor))}:
                self.found |= self._of_storage.get(storage, set())
        return result


def _tensors(values: Any) -> Iterator[Tensor]:
    return iter(tensors_of(values))


def _storage(tensor: Tensor) -> int:
    """Return what tells whether two tensors share memory; a number of its own where nobody can know."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(tensor)
