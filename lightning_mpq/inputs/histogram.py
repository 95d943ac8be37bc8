"""What the values of an input look like, in one pass and a fixed amount of memory, whatever their size."""

from __future__ import annotations

from collections.abc import Sequence
from math import frexp, ldexp

import torch
from torch import Tensor

HALF = 4096
"""Bins on either side of zero. The largest value lies in the outer half of them, so that a step of 8 bits spans 16."""
_MOST_ROWS = 2**18
"""Rows of one call that are counted, evenly spaced; the least and the largest value are those of all."""


class InputHistogram:
    """A weighted histogram over [-reach, reach), ``reach`` being a power of two that doubles when a value lies beyond.

    Bins of a doubled reach are pairs of those before, so that neither the order of the data nor how it is divided among
    processes changes what is counted.

    Attributes:
        low: Least value so far; infinity without any.
        high: Largest value.
        reach: 0 as long as all values are zero.
        counts: Sums of weights, float64 [2 * HALF] on the CPU.
    """

    def __init__(self) -> None:
        """Know no values."""
        self.low, self.high, self.reach = float("inf"), -float("inf"), 0.0
        self.counts = torch.zeros(2 * HALF, dtype=torch.float64)

    def add(self, rows: Tensor, weights: Tensor | None = None) -> None:
        """Count finite values.

        Args:
            rows: [M, channels], any floating-point type.
            weights: How much values count, [channels], [M, 1] or [M, channels]; None for all alike.
        """
        if not rows.numel():
            return
        low, high = (float(end) for end in rows.aminmax())
        self.low, self.high = min(self.low, low), max(self.high, high)
        if largest := max(-low, high):
            self._extend(ldexp(1.0, frexp(largest)[1]))  # the power of two above it
        step = len(rows) // _MOST_ROWS | 1  # odd: no width of an image is a multiple of it
        spaced = rows[::step]
        scale = HALF / self.reach if self.reach else 0.0
        wide = spaced.to(torch.promote_types(rows.dtype, torch.float32))
        index = (wide * scale).floor_().clamp_(-HALF, HALF - 1).to(torch.int64).add_(HALF).flatten()
        if weights is not None:
            weights = weights.to(wide).expand_as(rows)[::step].flatten()
        self.counts += torch.bincount(index, weights, minlength=2 * HALF).double().cpu()

    def scaled(self, factor: float) -> InputHistogram:
        """Return another whose counts are so many times as large."""
        other = self.copy()
        other.counts *= factor
        return other

    def merge(self, other: InputHistogram) -> None:
        """Count what another has counted; it may lose resolution, and is not to be used any more."""
        self._extend(other.reach)
        other._extend(self.reach)
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.counts = self.counts + other.counts

    def copy(self) -> InputHistogram:
        """Return another that knows the same."""
        other = InputHistogram()
        other.low, other.high, other.reach, other.counts = self.low, self.high, self.reach, self.counts.clone()
        return other

    @property
    def seen(self) -> bool:
        """Whether there was any value."""
        return self.low <= self.high

    def centres(self) -> Tensor:
        """Return the middle of each bin, [2 * HALF]."""
        return (torch.arange(-HALF, HALF, dtype=torch.float64) + 0.5) * (self.reach / HALF)

    def quantile(self, fraction: float) -> float:
        """Return the end of the first bin at which ``fraction`` of all weights is reached."""
        total = self.counts.cumsum(0)
        index = int(torch.searchsorted(total, fraction * total[-1]))
        return (min(index, 2 * HALF - 1) + 1 - HALF) * self.reach / HALF

    def _extend(self, reach: float) -> None:
        """Reach as far as a power of two, or zero, and no less far than before."""
        if not self.reach:
            self.reach = reach  # what was counted are zeros, whose bin is the same in any reach
        while self.reach < reach:
            pairs = self.counts.view(2, HALF // 2, 2).sum(2)
            self.counts = torch.zeros(2, HALF, dtype=torch.float64)
            self.counts[0, HALF // 2 :], self.counts[1, : HALF // 2] = pairs
            self.counts, self.reach = self.counts.flatten(), 2 * self.reach


def merged(histograms: Sequence[InputHistogram]) -> InputHistogram:
    """Return what several have counted together; they stay as they are."""
    total = InputHistogram()
    for histogram in histograms:
        total.merge(histogram.copy())
    return total
