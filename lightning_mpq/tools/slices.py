"""Something large, some of it at a time."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def slices(stop: int, step: int, start: int = 0) -> Iterator[slice]:
    """Yield the consecutive slices, of at least one and at most ``step`` each, that make up start to stop.

    Example:
        >>> list(slices(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = max(1, step)
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def some_of(rows: Tensor, elements: int) -> Iterator[slice]:
    """Yield slices of so many rows [R, C] that they have about as many elements as are wanted at once."""
    return slices(len(rows), elements // max(rows.shape[1], 1))
