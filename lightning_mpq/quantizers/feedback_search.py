"""Which range of a weight a scale should cover under error feedback: a bound ranks the ranges, two solves choose.

Error feedback turns each weight into what it is pending as when its column is rounded, and is left with the rounding
error of that, squared, at the cost of its column (`ErrorFeedback.column_costs`). Which range rounds the pending weights
best is so told by rounding to nearest alone; only that they depend on the range a little. So ranges are ranked by the
weights themselves, the first is solved, ranges are ranked again by what was pending, and the best few of these are
solved as well. The one with the least loss is kept, row by row: rows do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.registry import grid_named
from ..schemes import WeightScheme
from .clip_search import Scales, rank_trials, trial_scales
from .error_feedback import ErrorFeedback, Feedback

_SOLVED_AGAIN = 768
"""So many columns in all are solved again for each row, and one range at least: the fewer columns a row has, the more
the errors of two ranges differ by chance, which is a gain like any other, and the less does a solve cost."""
_ONE_SOLVE = 7
"""Bits from which the range that is ranked first is kept: steps are so fine that ranges differ little."""


class Searched(NamedTuple):
    """What was found for one scheme.

    Attributes:
        codes: uint8 [R, C].
        error: [R], e M e^T of each row's error e.
        scales: One trial.
    """

    codes: Tensor
    error: Tensor
    scales: Scales


def search_with_feedback(
    rows: Tensor, factor: ErrorFeedback, schemes: Sequence[WeightScheme], row_weights: Tensor
) -> list[Searched]:
    """Find scales and codes for schemes that can all be rounded side by side.

    Args:
        rows: [R, C]; the parts of the factor belong to consecutive parts of them.
        factor: The factorised moment.
        schemes: With blocks of columns or without, and of one family of grids.
        row_weights: [R], how much a row's loss counts where rows share a scale.
    """
    if schemes[0].granularity == "tensor":
        return [_search(rows, factor, [scheme], row_weights)[0] for scheme in schemes]
    return _search(rows, factor, schemes, row_weights)


def _search(
    rows: Tensor, factor: ErrorFeedback, schemes: Sequence[WeightScheme], row_weights: Tensor
) -> list[Searched]:
    costs = factor.column_costs()
    every = [trial_scales(rows, scheme) for scheme in schemes]
    known = [torch.ones_like(costs) if scheme.clip == "mse" else costs for scheme in schemes]
    first = [
        rank_trials(rows, own, scheme, scales, row_weights)[:1]
        for scheme, scales, own in zip(schemes, every, known, strict=True)
    ]
    tried = [scales.take(index).stored(own) for scales, index, own in zip(every, first, schemes, strict=True)]
    found = _solve(rows, factor, schemes, tried)
    again = [
        scales.take(_others(result, index, costs, scheme, scales, row_weights)).stored(scheme)
        for result, index, scheme, scales in zip(found, first, schemes, every, strict=True)
    ]
    if any(len(scales.scale) for scales in again):
        more = _solve(rows, factor, schemes, again)
    else:
        more = [Feedback(*(values[:0] for values in result)) for result in found]
    results = []
    for scheme, one, other, scales, others in zip(schemes, found, more, tried, again, strict=True):
        codes, loss, error = (torch.cat(pair) for pair in zip(one[:3], other[:3], strict=True))
        results.append(_best(codes, loss, error, scales.joined(others), scheme, row_weights))
    return results


def _others(
    found: Feedback, tried: Tensor, costs: Tensor, scheme: WeightScheme, scales: Scales, row_weights: Tensor
) -> Tensor:
    """Return which trials are worth a solve after the first one, [K, S, blocks]."""
    count = len(scales.scale)
    keep = most_solved_again(scheme, costs.shape[1])
    if keep == 0 or count == 1:
        return tried[:0]
    order = rank_trials(found.pending[0], costs, scheme, scales, row_weights)
    if isinstance(scheme.granularity, int):
        return order[:keep]
    # What was tried goes to the end, with all else in its order.
    last = (order == tried).to(torch.uint8).argsort(dim=0, stable=True)
    return order.gather(0, last)[: min(keep, count - 1)]


def most_solved_again(scheme: WeightScheme, columns: int) -> int:
    """Return how many ranges of a scheme are solved after the first one, side by side."""
    if scheme.clip != "moment" or scheme.bits >= _ONE_SOLVE:
        return 0
    return 2 if isinstance(scheme.granularity, int) else max(1, _SOLVED_AGAIN // columns)


def _solve(
    rows: Tensor, factor: ErrorFeedback, schemes: Sequence[WeightScheme], trials: Sequence[Scales]
) -> list[Feedback]:
    """Round rows with all trials of several schemes; [V, R, ...] for each scheme."""
    parts, columns = len(factor.order), rows.shape[1]
    height = len(rows) // parts

    sizes = [min(s.granularity, columns) if isinstance(s.granularity, int) else columns for s in schemes]
    block = gcd(*sizes)

    def side_by_side(values: Tensor, size: int) -> Tensor:
        """[V, S, blocks of one size] to [G, V * r, blocks of the size that all have in common]."""
        values = values.expand(-1, parts * height, -1).to(rows.dtype)
        if size > block:
            values = values.repeat_interleave(size // block, dim=2)[:, :, : ceil(columns / block)]
        return values.unflatten(1, (parts, height)).transpose(0, 1).flatten(1, 2)

    every = []
    for scheme, size, scales in zip(schemes, sizes, trials, strict=True):
        zero_point = None if scales.zero_point is None else side_by_side(scales.zero_point, size)
        every.append(grid_named(scheme.grid).place(side_by_side(scales.scale, size), zero_point, scheme.bits))
    levels = type(every[0]).join(every, dim=1)
    counts = [len(scales.scale) for scales in trials]
    repeated = rows.unflatten(0, (parts, height)).repeat(1, sum(counts), 1)
    solved = factor.round(repeated, levels, block if block < columns else None)
    by_trial = [values.unflatten(1, (-1, height)).transpose(0, 1).flatten(1, 2) for values in solved]
    split = [values.split(counts) for values in by_trial]
    return [Feedback(*each) for each in zip(*split, strict=True)]


def _best(
    codes: Tensor, loss: Tensor, error: Tensor, scales: Scales, scheme: WeightScheme, row_weights: Tensor
) -> Searched:
    """Choose the trial with the least loss for each row, or for the tensor if all rows share one scale."""
    if scheme.granularity == "tensor":
        best = (loss * row_weights).sum(1).argmin().expand(loss.shape[1])
        chosen = scales.take(best[None, :1, None])
    else:
        best = loss.argmin(0)
        chosen = scales.take(best[None, :, None].expand(1, -1, scales.scale.shape[2]))
    codes = codes.gather(0, best[None, :, None].expand(1, -1, codes.shape[2]))[0]
    return Searched(codes, error.gather(0, best[None])[0], chosen)
