"""Which part of a weight's range a scale should cover, judged by the error of the layer's output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.registry import grid_named
from ..schemes import WeightScheme
from ..tools.slices import some_of
from .nearest import MSE_RATIOS, fit_scale, sum_per_scale, weight_ranges
from .quantized_rows import placed, placed_by_blocks

LEAST_RATIO = {2: 0.3, 3: 0.4, 4: 0.5, 5: 0.65, 6: 0.75, 7: 0.85, 8: 0.9}
"""Bits to the smallest part of the absmax worth trying: the more levels, the less a finer step gains."""
STEP = 0.05


class Scales(NamedTuple):
    """V trials of the scales of a weight.

    Attributes:
        scale: [V, S, blocks] in the scheme's scale type; S is 1 for one scale per tensor, else R.
        zero_point: Same shape; None unless the grid stores zero points.
    """

    scale: Tensor
    zero_point: Tensor | None

    def take(self, index: Tensor) -> Scales:
        """Choose trials for each scale: an index [K, S, blocks] makes K new trials."""
        zero_point = None if self.zero_point is None else self.zero_point.gather(0, index)
        return Scales(self.scale.gather(0, index), zero_point)

    def at(self, index: Tensor) -> Scales:
        """Choose the same trials for all scales: an index [K]."""
        return self.take(index.to(self.scale.device)[:, None, None].expand(-1, *self.scale.shape[1:]))

    def rows(self, part: slice) -> Scales:
        """Return the scales of some rows; those of a tensor are those of all its rows."""
        if self.scale.shape[1] == 1:
            return self
        return Scales(self.scale[:, part], None if self.zero_point is None else self.zero_point[:, part])

    def stored(self, scheme: WeightScheme) -> Scales:
        """Return what can be stored of them; see `Grid.as_stored`."""
        return Scales(*grid_named(scheme.grid).as_stored(self.scale, self.zero_point, scheme.bits))

    def joined(self, other: Scales) -> Scales:
        """Return these trials, then the others."""
        both = None if self.zero_point is None or other.zero_point is None else (self.zero_point, other.zero_point)
        return Scales(torch.cat([self.scale, other.scale]), None if both is None else torch.cat(both))


def trial_ratios(scheme: WeightScheme) -> tuple[float, ...]:
    """Return the parts of the absmax that a scheme's scales may cover.

    Example:
        >>> trial_ratios(WeightScheme(bits=7, clip="moment"))
        (1.0, 0.95, 0.9, 0.85)
    """
    if scheme.clip == "moment":
        count = round((1 - LEAST_RATIO[scheme.bits]) / STEP) + 1
        return tuple(round(1 - STEP * step, 2) for step in range(count))
    if scheme.clip == "mse":
        return MSE_RATIOS
    return (1.0,) if scheme.clip == "absmax" else (float(scheme.clip),)


def trial_scales(rows: Tensor, scheme: WeightScheme) -> Scales:
    """Return the scales for every ratio of `trial_ratios`, computed side by side.

    Args:
        rows: [R, C].
        scheme: Granularity, grid, bits and clip.

    Raises:
        ValueError: If a scale does not fit the scale type.
    """
    low, high = weight_ranges(rows, scheme)
    ratios = torch.tensor(trial_ratios(scheme), dtype=rows.dtype, device=rows.device)[:, None, None]
    return Scales(*fit_scale(low * ratios, high * ratios, scheme))


_CACHED_ELEMENTS = 2**17
"""Weights that are rounded at once: few enough that all that is made of them stays in a processor's cache."""


def rank_trials(
    rows: Tensor, costs: Tensor, scheme: WeightScheme, trials: Scales, row_weights: Tensor | None = None
) -> Tensor:
    """Return the order of trials, best first, by a weighted sum of squared rounding errors.

    The sum falls apart into one for each scale, so that every block of columns finds its own ratio at the cost of
    rounding alone. Where there is no error feedback and the moment is a diagonal it is the error of the output.

    Args:
        rows: [R, C].
        costs: [G, C]: what a squared error in a column costs, for each of G equal parts of the rows.
        scheme: Granularity, grid, bits and clip.
        trials: V of them.
        row_weights: [R], how much a row counts where rows share a scale; default: all alike.

    Returns:
        [V, S, blocks].
    """
    if len(trials.scale) == 1:
        return torch.zeros(trials.scale.shape, dtype=torch.long, device=rows.device)
    weights = row_weights if scheme.granularity == "tensor" else None
    return torch.cat([each.argsort(dim=0, stable=True) for each in _errors(rows, costs, scheme, trials, weights)], 1)


def least_error(rows: Tensor, costs: Tensor, scheme: WeightScheme, trials: Scales, row_weights: Tensor) -> float:
    """Return the sum by which `rank_trials` ranks, with the best trial for each scale.

    Args:
        rows: As in `rank_trials`.
        costs: Likewise.
        scheme: Likewise.
        trials: Likewise.
        row_weights: [R], how much a row counts.
    """
    return sum(float(each.amin(0).sum()) for each in _errors(rows, costs, scheme, trials, row_weights))


def _errors(
    rows: Tensor, costs: Tensor, scheme: WeightScheme, trials: Scales, row_weights: Tensor | None
) -> Iterator[Tensor]:
    """Yield the weighted sums of squared errors of all trials, [V, ...], for some scales [S, blocks] at a time."""
    height, shared = len(rows) // len(costs), scheme.granularity == "tensor"
    sums: Tensor | None = None
    for part in some_of(rows, _CACHED_ELEMENTS):
        own = costs[torch.arange(part.start, part.stop, device=rows.device) // height]
        if row_weights is not None:
            own = own * row_weights[part, None].to(own)
        zero_point = None if trials.zero_point is None else trials.zero_point[:, part]
        scales = trials if shared else Scales(trials.scale[:, part], zero_point)
        each = [_weighted_errors(rows[part], own, scheme, scales, number) for number in range(len(trials.scale))]
        errors = torch.stack(each)
        if not shared:
            yield errors
        else:
            sums = errors if sums is None else sums + errors
    if sums is not None:
        yield sums


def _weighted_errors(rows: Tensor, costs: Tensor, scheme: WeightScheme, trials: Scales, number: int) -> Tensor:
    """Return the sum of squared rounding errors under each scale of one trial, shaped like the scales."""
    zero_point = None if trials.zero_point is None else trials.zero_point[number]
    scale, columns = trials.scale[number], rows.shape[1]
    if isinstance(scheme.granularity, int) and columns % scheme.granularity:  # the last block is shorter
        levels = placed(scale, zero_point, scheme, columns, rows.dtype)
        return sum_per_scale(levels.values(levels.nearest(rows)).sub_(rows).square_().mul_(costs), scheme)
    levels, shape = placed_by_blocks(scale, zero_point, scheme, columns, rows.dtype)
    of_rows = levels.cost(rows.view(shape), costs.view(shape)).view(len(rows), -1)
    return of_rows.sum(0, keepdim=True) if scheme.granularity == "tensor" else of_rows
