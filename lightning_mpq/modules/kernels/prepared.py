"""Weights in the layout of a kernel, kept as long as the stored tensors that they were made from.

They belong to no module: whatever holds the stored tensors (a layer, its tied twin, an exported program) finds
them by the memory of those tensors, and a change of that memory, in place or by replacement, makes them anew.
So nothing has to be moved, copied, pickled or saved with a model.
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from .matrix import PackedMatrix
from .registry import Outcome, prepare_by, warn_once


class _Entry(NamedTuple):
    """One prepared weight.

    Attributes:
        memory: What it was made from; a reference also keeps the address from being used again.
        versions: How often the tensors had been changed in place.
        outcome: The weight in a kernel's layout, or why there is none.
    """

    memory: tuple[StorageWeakRef, ...]
    versions: tuple[int, ...]
    outcome: Outcome


_entries: dict[tuple[object, ...], _Entry] = {}
_lock = Lock()


def prepared_for(matrix: PackedMatrix, kernel: str, dtype: torch.dtype, quiet: bool = False) -> Outcome:
    """Return a weight in the layout of the kernel that takes it, made at the first call; warns where none does.

    Args:
        matrix: The weight.
        kernel: A kernel's name, or ``"auto"``.
        dtype: Type of the inputs.
        quiet: Whether nothing is said of kernels that cannot be used.
    """
    key = _key(matrix, kernel, dtype)
    versions = tuple(0 if part.is_inference() else part._version for part in matrix.tensors)
    entry = _entries.get(key)
    if entry is None or entry.versions != versions:
        with _lock:
            entry = _entries.get(key)
            if entry is None or entry.versions != versions:
                release_unused()
                memory = tuple(StorageWeakRef(part.untyped_storage()) for part in matrix.tensors)
                entry = _Entry(memory, versions, prepare_by(kernel, matrix, dtype))
                _entries[key] = entry
    if entry.outcome.prepared is None and not quiet:
        warn_once(entry.outcome)
    return entry.outcome


def prepared_bytes(matrix: PackedMatrix) -> int:
    """Return the bytes that kernels keep for a weight beside the stored ones."""
    stem = _stem(matrix)
    found = [entry.outcome.prepared for key, entry in list(_entries.items()) if key[: len(stem)] == stem]
    return sum(prepared.nbytes for prepared in found if prepared is not None)


def forget(matrix: PackedMatrix) -> None:
    """Drop what kernels keep for a weight."""
    stem = _stem(matrix)
    for key in [key for key in list(_entries) if key[: len(stem)] == stem]:
        _entries.pop(key, None)


def release_unused() -> None:
    """Drop what kernels keep for tensors that are gone; done whenever a weight is prepared."""
    for key, entry in list(_entries.items()):
        if any(reference.expired() for reference in entry.memory):
            _entries.pop(key, None)


def _stem(matrix: PackedMatrix) -> tuple[object, ...]:
    scheme = matrix.scheme
    return (*map(_place, matrix.tensors), scheme.bits, scheme.granularity, scheme.grid, matrix.rows, matrix.columns)


def _key(matrix: PackedMatrix, kernel: str, dtype: torch.dtype) -> tuple[object, ...]:
    return (*_stem(matrix), kernel, dtype)


def _place(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor's values are: which memory, and where in it."""
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())
