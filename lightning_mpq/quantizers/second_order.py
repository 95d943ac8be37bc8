"""Rounding a layer's weight by the error of its output: one factorisation for all schemes, the best codes for each.

For every scale several clip ranges are rounded in full, by error feedback and to nearest, and the one with the least
output error is kept, row by row: rows (output channels) do not see each other. Nothing cheaper will do: how far
error feedback can make up for what is clipped does not show in the errors of single weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.levels import Levels
from ..grids.registry import grid_named
from ..schemes import WeightScheme
from .clip_search import Scales, rank_scales, trial_scales
from .error_feedback import ErrorFeedback, output_error
from .nearest import finite_rows
from .quantized_rows import QuantizedRows, spread

_CHUNK_ELEMENTS = 2**22
"""Weights that are rounded side by side (16 MiB of float32)."""
_STRIDE = 3
"""First every third clip range is tried, from the whole one on, which is exact for weights that lie on a grid already;
then the neighbours of the best."""
_RANKED = 2
"""Trials in which each block of columns has a range of its own, the best by `rank_scales`."""


class RoundedRows(NamedTuple):
    """A rounded weight and what it does to the layer's output.

    Attributes:
        quantized: Codes, scales and scheme.
        error: tr(E M E^T): the mean squared change of the output, summed over output channels.
    """

    quantized: QuantizedRows
    error: float


def round_rows(
    rows: Tensor,
    moment: Tensor,
    schemes: Sequence[WeightScheme],
    row_weights: Tensor | None = None,
    damping: float = 0.01,
) -> list[RoundedRows]:
    """Round one weight to several schemes by the moment of its inputs.

    The moment is factorised once, and the trials of all schemes are rounded side by side. With
    ``rounding="second_order"`` no row comes out worse than rounded to nearest at the same scales. Scales are fixed
    before the codes; those of blocks of columns are chosen by a bound that neglects how blocks interact.

    Args:
        rows: [R, C], the weight; G consecutive parts of its rows belong to G convolution groups.
        moment: M, [G, C, C], the mean of x x^T over the inputs of each convolution group; where it is zero, the
            weight error counts instead.
        schemes: Any schemes, also those that need no inputs.
        row_weights: [R], how much the error of each row counts where rows share a scale; default: all alike.
        damping: See `ErrorFeedback.factorise`.

    Raises:
        NonFiniteError: If a weight or the moment is NaN or infinite.
        ValueError: If shapes do not fit, or a scale does not fit the scale type.

    Example:
        >>> weight, inputs = torch.randn(4, 8), torch.randn(100, 8) @ torch.randn(8, 8)
        >>> schemes = [WeightScheme(3), WeightScheme(3, rounding="second_order", clip="moment")]
        >>> nearest, second_order = round_rows(weight, (inputs.T @ inputs / 100)[None], schemes)
        >>> second_order.error < nearest.error
        True
    """
    wide = finite_rows(rows)
    parts, columns = moment.shape[0], moment.shape[-1]
    if moment.shape != (parts, columns, columns) or wide.shape[1] != columns or len(wide) % parts:
        raise ValueError(
            f"Expected a moment of shape [groups, {wide.shape[1]}, {wide.shape[1]}] for {list(wide.shape)} weights "
            f"and groups that divide the rows, got {list(moment.shape)}."
        )
    moment = _with_inputs_everywhere(moment)
    factor = None
    if any(scheme.rounding == "second_order" for scheme in schemes):
        factor = ErrorFeedback.factorise(moment, damping, wide.dtype)
    moment = moment.to(wide.dtype)
    found: dict[int, RoundedRows] = {}
    for kind in dict.fromkeys(map(_side_by_side_with, schemes)):
        numbers = [number for number, scheme in enumerate(schemes) if _side_by_side_with(scheme) == kind]
        chosen = [schemes[number] for number in numbers]
        own_factor = factor if chosen[0].rounding == "second_order" else None
        best = _search(wide, moment, own_factor, chosen, row_weights)
        found |= dict(zip(numbers, best, strict=True))
    return [found[number] for number in range(len(schemes))]


def _side_by_side_with(scheme: WeightScheme) -> tuple[bool, bool, str]:
    """Return what schemes have in common if and only if their trials can be rounded side by side."""
    return scheme.rounding == "second_order", isinstance(scheme.granularity, int), grid_named(scheme.grid).family


def _with_inputs_everywhere(moment: Tensor) -> Tensor:
    """Give parts whose inputs are all zero some that are equal and tiny, so that the size of errors decides there."""
    diagonal = moment.diagonal(dim1=1, dim2=2)
    tiny = 1e-6 * diagonal.mean() if diagonal.any() else torch.ones_like(moment[0, 0, 0])
    identity = torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
    return torch.where(diagonal.any(1)[:, None, None], moment, tiny * identity)


def _search(
    rows: Tensor,
    moment: Tensor,
    factor: ErrorFeedback | None,
    schemes: Sequence[WeightScheme],
    row_weights: Tensor | None,
) -> list[RoundedRows]:
    """Find the best scales and codes for schemes that are all rounded in one way."""
    weights = rows.unflatten(0, (len(moment), -1))
    costs = torch.ones(len(rows)).to(rows) if row_weights is None else row_weights.to(rows)
    every = [trial_scales(rows, scheme) for scheme in schemes]
    tried = []
    for scales, scheme in zip(every, schemes, strict=True):
        count = len(scales.scale)
        if scheme.clip == "mse":
            tried.append(rank_scales(rows, torch.ones_like(moment[:, 0]), scheme, keep=1))
            continue
        step = 1 if factor is None else _STRIDE
        first = scales.at(_positions(count, step))
        if isinstance(scheme.granularity, int) and count > 1:
            column_costs = moment.diagonal(dim1=1, dim2=2) if factor is None else factor.column_costs()
            first = first.joined(rank_scales(rows, column_costs, scheme, _RANKED))
        tried.append(first)
    results = _round_side_by_side(weights, moment, factor, schemes, tried)
    if factor is not None:
        more = [
            _neighbours(scales, error, scheme, costs)
            for scales, (_, error), scheme in zip(every, results, schemes, strict=True)
        ]
        joined = [first.joined(second) for first, second in zip(tried, more, strict=True)]
        second_results = _round_side_by_side(weights, moment, factor, schemes, more)
        both = zip(results, second_results, strict=True)
        results = [(torch.cat([c, d]), torch.cat([e, f])) for (c, e), (d, f) in both]
        tried = joined
    triples = zip(results, tried, schemes, strict=True)
    return [_best_trial(codes, error, scales, scheme, costs) for (codes, error), scales, scheme in triples]


def _positions(count: int, stride: int) -> Tensor:
    """Return which of ``count`` trials come first: the whole range, and so many that each is at most one away.

    Example:
        >>> _positions(8, 3), _positions(9, 3)
        (tensor([0, 3, 6]), tensor([0, 3, 6, 8]))
    """
    return torch.arange(0, count - 1 + (stride + 1) // 2, stride).clamp(max=count - 1)


def _neighbours(every: Scales, error: Tensor, scheme: WeightScheme, costs: Tensor) -> Scales:
    """Return the two trials beside the best of those that stand ``_STRIDE`` apart; none if there is no choice.

    Args:
        every: All V trials.
        error: [tried, R], the output error of each row with the trials at `_positions` and perhaps others after them.
        scheme: The scheme.
        costs: [R], see `round_rows`.
    """
    count = len(every.scale)
    if scheme.clip != "moment" or count == 1:
        return every.at(torch.arange(0))
    positions = _positions(count, _STRIDE).to(error.device)
    error = error[: len(positions)]
    best = (error * costs).sum(1, keepdim=True).argmin(0) if scheme.granularity == "tensor" else error.argmin(0)
    beside = torch.stack([positions[best] - 1, positions[best] + 1]).clamp(0, count - 1)
    return every.take(beside[:, :, None].expand(-1, -1, every.scale.shape[2]))


def _round_side_by_side(
    weights: Tensor,
    moment: Tensor,
    factor: ErrorFeedback | None,
    schemes: Sequence[WeightScheme],
    scales: Sequence[Scales],
) -> list[tuple[Tensor, Tensor]]:
    """Round a weight with all trials of several schemes, in chunks that bound the memory.

    Args:
        weights: [G, r, C], the rows of each convolution group.
        moment: [G, C, C].
        factor: Its factorisation; None to round to nearest.
        schemes: The schemes, all with blocks of columns or all without.
        scales: The trials of each.

    Returns:
        For each scheme the codes, uint8 [V, R, C], and e M e^T of each row's error e, [V, R].
    """
    parts, height, columns = weights.shape
    dtype = weights.dtype

    def side_by_side(values: Tensor, scheme: WeightScheme) -> Tensor:
        """[V, S, blocks] to [G, V * r, 1], or [G, V * r, C] where a row has several blocks."""
        values = values.expand(-1, parts * height, -1).to(dtype)
        if isinstance(scheme.granularity, int):
            values = spread(values.flatten(0, 1), scheme, columns).unflatten(0, (-1, parts * height))
        return values.unflatten(1, (parts, height)).transpose(0, 1).flatten(1, 2)

    counts = [len(trial.scale) * height for trial in scales]
    every = []
    for scheme, trial in zip(schemes, scales, strict=True):
        zero_point = None if trial.zero_point is None else side_by_side(trial.zero_point, scheme)
        every.append(grid_named(scheme.grid).place(side_by_side(trial.scale, scheme), zero_point, scheme.bits))
    levels = type(every[0]).join(every, dim=1)
    source = torch.arange(sum(counts), device=weights.device) % height  # each trial repeats all rows
    codes = torch.empty(parts, sum(counts), columns, dtype=torch.uint8, device=weights.device)
    error = torch.empty(parts, sum(counts), dtype=dtype, device=weights.device)
    step = max(1, _CHUNK_ELEMENTS // (parts * columns))
    for start in range(0, sum(counts), step):
        part = slice(start, start + step)
        chunk, of_part = weights[:, source[part]], levels.map(itemgetter((slice(None), part)))
        codes[:, part], error[:, part] = _round_chunk(chunk, moment, factor, of_part)
    results = []
    for one_codes, one_error in zip(codes.split(counts, dim=1), error.split(counts, dim=1), strict=True):
        by_trial = one_codes.unflatten(1, (-1, height)).transpose(0, 1).flatten(1, 2)
        results.append((by_trial, one_error.unflatten(1, (-1, height)).transpose(0, 1).flatten(1, 2)))
    return results


def _round_chunk(
    weights: Tensor, moment: Tensor, factor: ErrorFeedback | None, levels: Levels
) -> tuple[Tensor, Tensor]:
    """Round [G, N, C] weights; return codes and output errors, row by row those of the better way of rounding."""
    nearest = levels.nearest(weights)
    error = output_error(levels.values(nearest) - weights, moment)
    if factor is None:
        return nearest.to(torch.uint8), error
    codes, _ = factor.round(weights, levels)
    feedback_error = output_error(levels.values(codes.to(weights.dtype)) - weights, moment)
    better = feedback_error < error
    return torch.where(better[..., None], codes, nearest.to(torch.uint8)), torch.where(better, feedback_error, error)


def _best_trial(codes: Tensor, error: Tensor, scales: Scales, scheme: WeightScheme, costs: Tensor) -> RoundedRows:
    """Choose the trial with the least output error for each row, or for the tensor if all rows share one scale.

    Args:
        codes: uint8 [V, R, C].
        error: [V, R].
        scales: V trials.
        scheme: The scheme.
        costs: [R], see `round_rows`.
    """
    rows = error.shape[1]
    if scheme.granularity == "tensor":
        best = (error * costs).sum(1).argmin().expand(rows)
        chosen = scales.take(best[None, :1, None])
    else:
        best = error.argmin(0)
        chosen = scales.take(best[None, :, None].expand(1, -1, scales.scale.shape[2]))
    picked = codes.gather(0, best[None, :, None].expand(1, -1, codes.shape[2]))[0]
    zero_point = None if chosen.zero_point is None else chosen.zero_point[0]
    total = (error.gather(0, best[None])[0] * costs).sum(dtype=torch.float64 if error.device.type != "mps" else None)
    return RoundedRows(QuantizedRows(picked, chosen.scale[0], zero_point, scheme), float(total))
