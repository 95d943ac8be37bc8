"""A user's own metrics with intervals: what other batches of the same kind would have given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

LEAST_BATCHES = 8
"""Of fewer batches nothing is said."""
_RESAMPLES = 1000
_TAILS = (0.025, 0.975)
_SAME = 1e-4
"""A metric that differs by more, relative to 1 or its size, from the mean over its batches is no such mean."""

Batch = tuple[float, float]
"""A metric's mean over a batch, and how many samples that has."""


class MetricValues(dict[str, float]):
    """Metric to value, for which plain mappings will do where there are no intervals.

    Attributes:
        intervals: Metric to what 95 of 100 values on other batches of the same kind would lie between.
    """

    def __init__(self, values: Mapping[str, float], intervals: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Hold values, and the intervals of some."""
        super().__init__(values)
        known = getattr(values, "intervals", {}) if intervals is None else intervals
        self.intervals = dict[str, tuple[float, float]](known)


def intervals_of(values: Mapping[str, float], batches: Mapping[str, Sequence[Batch]]) -> dict[str, tuple[float, float]]:
    """Return the bootstrap intervals of metrics that are means over batches (B. Efron, Annals of Statistics 7, 1979).

    Whole batches are drawn with replacement, so that samples of a batch may hang together. Others than means, as an F1
    score or an area under a curve, have none.

    Args:
        values: Metric to value.
        batches: Metric to the batches that it is a mean of, each with its number of samples.
    """
    found = {}
    for name, value in values.items():
        rows = np.array(batches.get(name, ()), dtype=float).reshape(-1, 2)
        if len(rows) < LEAST_BATCHES or not np.isfinite(rows).all() or rows[:, 1].sum() <= 0:
            continue
        if abs(np.average(rows[:, 0], weights=rows[:, 1]) - value) > _SAME * max(1.0, abs(value)):
            continue
        low, high = np.quantile(_resampled_means(rows[:, 0], rows[:, 1]), _TAILS)
        found[name] = (float(low), float(high))
    return found


def joined(parts: Sequence[Mapping[str, Sequence[Batch]]]) -> dict[str, list[Batch]]:
    """Return the batches of several processes together."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: [batch for part in parts for batch in part.get(name, ())] for name in names}


def _resampled_means(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return weighted means over batches drawn again, [resamples]."""
    count = len(means)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _RESAMPLES)
    drawn: np.ndarray = times @ (weights * means) / np.maximum(times @ weights, 1e-300)
    return drawn
