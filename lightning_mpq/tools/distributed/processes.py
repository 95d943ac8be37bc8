"""Which process this is, and how many take part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed as dist

_ALONE: ContextVar[bool] = ContextVar("lightning_mpq_alone", default=False)


def active() -> bool:
    """Tell whether other processes take part: a default process group of two or more, and not within `alone`."""
    return dist.is_available() and dist.is_initialized() and not _ALONE.get() and dist.get_world_size() > 1


def rank() -> int:
    """Return this process's rank, 0 for a single process."""
    return dist.get_rank() if active() else 0


def world_size() -> int:
    """Return how many processes take part."""
    return dist.get_world_size() if active() else 1


@contextmanager
def alone() -> Iterator[None]:
    """Work as a single process within the block, for what only some ranks do.

    Example:
        >>> with alone():
        ...     active(), world_size()
        (False, 1)
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)
