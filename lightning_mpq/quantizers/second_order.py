"""Rounding a layer's weight by the error of its output: one factorisation for all schemes, the best codes for each.

For every scale a few clip ranges are rounded in full, by error feedback and to nearest, and the one with the least
output error is kept, row by row: rows (output channels) do not see each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..policy import WeightScheme
from .clip_search import Scales, rank_scales, trial_scales
from .error_feedback import ErrorFeedback, nearest_codes, output_error
from .grid import QuantizedRows, spread
from .nearest import finite_rows

_CHUNK_ELEMENTS = 2**22
"""Weights that are rounded side by side (16 MiB of float32)."""
TRIALS = 5
"""Clip ranges of each scale that are rounded in full, out of those that `rank_scales` orders."""


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
    trials: int = TRIALS,
) -> list[RoundedRows]:
    """Round one weight to several schemes by the moment of its inputs.

    The moment is factorised once, and the trials of all schemes are rounded side by side. With
    ``rounding="second_order"`` no row comes out worse than rounded to nearest at the same scales. Scales are fixed
    before the codes; those of blocks of columns are chosen by a bound that neglects how blocks interact.

    Args:
        rows: [R, C], the weight; G consecutive parts of its rows belong to G convolution groups.
        moment: M, [G, C, C], the mean of x x^T over the inputs of each convolution group.
        schemes: Any schemes, also those that need no inputs.
        row_weights: [R], how much the error of each row counts where rows share a scale; default: all alike.
        damping: See `ErrorFeedback.factorise`.
        trials: How many clip ranges of each scale are rounded in full.

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
    weights = wide.unflatten(0, (parts, -1))
    factor = None
    if any(scheme.rounding == "second_order" for scheme in schemes):
        factor = ErrorFeedback.factorise(moment, damping, wide.dtype)
    moment = moment.to(wide.dtype)
    found: dict[int, RoundedRows] = {}
    batches: dict[tuple[bool, bool], list[int]] = {}
    for number, scheme in enumerate(schemes):
        key = (scheme.rounding == "second_order", isinstance(scheme.granularity, int))
        batches.setdefault(key, []).append(number)
    for (feedback, _), numbers in batches.items():
        used = factor if feedback else None
        scales = [_scales(wide, moment, schemes[number], used, trials) for number in numbers]
        chosen = [schemes[number] for number in numbers]
        rounded = _round_side_by_side(weights, moment, used, chosen, scales)
        for number, scale, (codes, error) in zip(numbers, scales, rounded, strict=True):
            found[number] = _best_trial(codes, error, scale, schemes[number], row_weights)
    return [found[number] for number in range(len(schemes))]


def _scales(rows: Tensor, moment: Tensor, scheme: WeightScheme, factor: ErrorFeedback | None, trials: int) -> Scales:
    """Return the scales to try, for a scheme's granularity and clip."""
    if scheme.clip == "mse":
        return rank_scales(rows, torch.ones_like(moment[:, 0]), scheme, keep=1)
    if factor is not None:
        return rank_scales(rows, factor.column_costs(), scheme, trials)
    if isinstance(scheme.granularity, int):
        return rank_scales(rows, moment.diagonal(dim1=1, dim2=2), scheme, trials)
    return trial_scales(rows, scheme)


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

    pairs = list(zip(schemes, scales, strict=True))
    counts = [len(trial.scale) * height for _, trial in pairs]
    scale = torch.cat([side_by_side(trial.scale, scheme) for scheme, trial in pairs], dim=1)
    offset = torch.cat([side_by_side(trial.offset(scheme, dtype), scheme) for scheme, trial in pairs], dim=1)
    top = torch.cat([scale.new_full((parts, n), 2**s.bits - 1) for s, n in zip(schemes, counts, strict=True)], dim=1)
    source = torch.arange(sum(counts), device=weights.device) % height  # each trial repeats all rows
    codes = torch.empty(parts, sum(counts), columns, dtype=torch.uint8, device=weights.device)
    error = torch.empty(parts, sum(counts), dtype=dtype, device=weights.device)
    step = max(1, _CHUNK_ELEMENTS // (parts * columns))
    for start in range(0, sum(counts), step):
        part = slice(start, start + step)
        chunk = weights[:, source[part]]
        codes[:, part], error[:, part] = _round_chunk(
            chunk, moment, factor, scale[:, part], offset[:, part], top[:, part]
        )
    results = []
    for one_codes, one_error in zip(codes.split(counts, dim=1), error.split(counts, dim=1), strict=True):
        by_trial = one_codes.unflatten(1, (-1, height)).transpose(0, 1).flatten(1, 2)
        results.append((by_trial, one_error.unflatten(1, (-1, height)).transpose(0, 1).flatten(1, 2)))
    return results


def _round_chunk(
    weights: Tensor, moment: Tensor, factor: ErrorFeedback | None, scale: Tensor, offset: Tensor, top: Tensor
) -> tuple[Tensor, Tensor]:
    """Round [G, N, C] weights; return codes and output errors, row by row those of the better way of rounding."""
    nearest = nearest_codes(weights, scale, offset, top[..., None])
    error = output_error(scale * (nearest - offset) - weights, moment)
    if factor is None:
        return nearest.to(torch.uint8), error
    codes, _ = factor.round(weights, scale, offset, top)
    feedback_error = output_error(scale * (codes.to(weights.dtype) - offset) - weights, moment)
    better = feedback_error < error
    return torch.where(better[..., None], codes, nearest.to(torch.uint8)), torch.where(better, feedback_error, error)


def _best_trial(
    codes: Tensor, error: Tensor, scales: Scales, scheme: WeightScheme, row_weights: Tensor | None
) -> RoundedRows:
    """Choose the trial with the least output error for each row, or for the tensor if all rows share one scale.

    Args:
        codes: uint8 [V, R, C].
        error: [V, R].
        scales: V trials.
        scheme: The scheme.
        row_weights: [R] or None.
    """
    costs = torch.ones_like(error[0]) if row_weights is None else row_weights.to(error)
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
