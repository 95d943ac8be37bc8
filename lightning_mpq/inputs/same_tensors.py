"""Which tensors are one and the same, or hold the same values, while a model runs: their readers share a range."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..tools.distributed import gather

Reader = TypeVar("Reader")


class TensorNumbers:
    """Numbers tensors in the order in which they are first seen; one that was changed in place counts as another."""

    def __init__(self) -> None:
        """Know none."""
        self._known: dict[tuple[int, int], tuple[weakref.ref[Tensor], int]] = {}
        self._next = 0

    def __call__(self, tensor: Tensor) -> int:
        """Return the number of a tensor; it is not kept alive by that."""
        key = (id(tensor), 0 if tensor.is_inference() else tensor._version)
        found = self._known.get(key)
        if found is None or found[0]() is not tensor:  # an id is given again when its tensor is gone
            found = self._known[key] = weakref.ref(tensor), self._next
            self._next += 1
        return found[1]


def values_of(tensor: Tensor) -> tuple[int, int]:
    """Return what tensors of the same values have in common, whatever their shape; others have it by chance alone.

    A copy is read for its values: of padding by nothing, of ``clone``, of another layout.

    Args:
        tensor: A floating-point tensor of any shape.
    """
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size(), torch.int64)
    return tensor.numel(), int(tensor.detach().contiguous().view(bits).sum(dtype=torch.int64))


def sharing(read: Mapping[Reader, Sequence[Hashable]]) -> dict[Reader, list[Reader]]:
    """Return for each reader those that have read the same in all processes, itself among them.

    Args:
        read: Reader to what it has read in this process, in order; see `values_of`.

    Example:
        >>> sharing({"a": [0, 2], "b": [1, 3], "c": [0, 2]})
        {'a': ['a', 'c'], 'b': ['b'], 'c': ['a', 'c']}
    """
    everywhere = gather(dict(read))
    keys = {reader: tuple(tuple(own.get(reader, ())) for own in everywhere) for reader in read}
    together: dict[tuple[tuple[Hashable, ...], ...], list[Reader]] = {}
    for reader, key in keys.items():
        together.setdefault(key, []).append(reader)
    return {reader: together[key] if any(key) else [reader] for reader, key in keys.items()}
