"""How much memory tensors take while something is computed: counted by their storages, and so the same everywhere."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that are made while it is active, for as long as they live.

    Memory that operations use within themselves is not seen.

    Attributes:
        now: Bytes of those that live.
        peak: The most there were.

    Example:
        >>> import torch
        >>> with LiveBytes() as live:
        ...     kept = torch.zeros(8) + 1
        >>> live.peak, live.now
        (64, 32)
    """

    supports_higher_order_operators = True

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        """Count from nothing.

        Args:
            known: Tensors that were there before, as parameters are.
        """
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what it made."""
        given = {_number(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (number := _number(tensor)) not in self._known | given:
                self._add(tensor, number)
        return result

    def _add(self, tensor: Tensor, number: int) -> None:
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known.add(number)
        weakref.finalize(storage, self._drop, number, size)

    def _drop(self, number: int, size: int) -> None:
        self.now -= size
        self._known.discard(number)


def _number(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
