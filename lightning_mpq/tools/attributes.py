"""Attributes of an object that stand aside for a while, parameters of a module too, and weights made for one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from .clean_up import afterwards


@contextmanager
def shadowed(module: object, **attributes: object) -> Iterator[None]:
    """Let attributes of a module, methods and parameters too, stand in its ``__dict__`` for a while.

    ``nn.Module`` finds parameters only when ordinary lookup fails, so that the parameter itself, its name in
    the state dict and every optimizer that holds it stay untouched.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> with shadowed(layer, weight=torch.full((1, 1), 3.0)):
        ...     float(layer(torch.ones(1)))
        3.0
        >>> "weight" in layer.__dict__, len(list(layer.parameters()))
        (False, 1)
    """
    names = module.__dict__
    before = {name: names[name] for name in attributes if name in names}

    def restore() -> None:
        for name in attributes:
            names.pop(name, None)
        names.update(before)

    with afterwards(restore):
        names.update(attributes)
        yield


class FreshRecurrentWeights(nn.Module):
    """Mixin of an LSTM, GRU or RNN whose weights are computed when they are read: once for each call, then dropped."""

    _flat_weights: list[Tensor]
    _flat_weight_refs: list[Any]
    _flat_weights_names: list[str]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the recurrent layer on its computed weights."""
        with shadowed(self, _flat_weights=[getattr(self, name) for name in self._flat_weights_names]):
            return super().forward(*args, **kwargs)

    def _init_flat_weights(self) -> None:
        """Keep no list of weights between calls; it would keep them, or their graph, alive."""
        self._flat_weights, self._flat_weight_refs = [], []

    def _update_flat_weights(self) -> None:
        """Leave the list that `forward` has made."""
