"""From the values of an input to the range that its levels cover."""

from __future__ import annotations

import torch
from torch import Tensor

from ..schemes import InputScheme
from .histogram import InputHistogram
from .quantizer import InputRange, range_between

OUTSIDE = 1e-4
"""Part of the values beyond a ``"percentile"`` range, on either side."""
_PARTS = 2.0 ** (-torch.arange(0, 97, dtype=torch.float64) / 16)
"""Parts of the full range that are tried for ``"mse"``: from all to 1/64, 16 for each halving."""


def best_range(histogram: InputHistogram, scheme: InputScheme) -> InputRange:
    """Return the range of an input for a scheme.

    Args:
        histogram: Its values; at least one.
        scheme: Says by ``clip`` how the range is chosen, and by ``bits`` and ``symmetric`` how many levels it has.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if low == high or scheme.clip == "absmax":
        return range_between(low, high, scheme)
    inner = (max(low, min(histogram.quantile(OUTSIDE), 0.0)), min(high, max(histogram.quantile(1 - OUTSIDE), 0.0)))
    if scheme.clip == "percentile":
        return range_between(*inner, scheme)
    ends = [(low * part, high * part) for part in _PARTS.tolist()]
    best = _least_error(histogram, [*ends, inner], scheme)
    if low < 0 < high and not scheme.symmetric:  # the two ends by themselves
        best = _least_error(histogram, [best, *((best[0], end) for _, end in ends)], scheme)
        best = _least_error(histogram, [best, *((end, best[1]) for end, _ in ends)], scheme)
    return range_between(*best, scheme)


def squared_error(histogram: InputHistogram, found: InputRange, scheme: InputScheme) -> float:
    """Return the mean squared error of rounding, by the weights of the histogram, to the width of its bins."""
    error = float(_squared_errors(histogram, [found], scheme)[0])
    return error / max(float(histogram.counts.sum()), 1e-300)


def _least_error(
    histogram: InputHistogram, ends: list[tuple[float, float]], scheme: InputScheme
) -> tuple[float, float]:
    """Return the ends with the least error, of equal ones the first."""
    errors = _squared_errors(histogram, [range_between(low, high, scheme) for low, high in ends], scheme)
    return ends[int(errors.argmin())]


def _squared_errors(histogram: InputHistogram, ranges: list[InputRange], scheme: InputScheme) -> Tensor:
    held = histogram.counts > 0
    values, counts = histogram.centres()[held], histogram.counts[held]
    scales = torch.tensor([found.scale for found in ranges], dtype=torch.float64)[:, None]
    zeros = torch.tensor([found.zero_point for found in ranges], dtype=torch.float64)[:, None]
    codes = ((values / scales).round_() + zeros).clamp_(0, 2**scheme.bits - 1)
    return ((codes - zeros) * scales - values).square_() @ counts
