"""Rounding to the nearest level, with a choice of the range that a scale covers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import NonFiniteError
from ..grids.registry import grid_named
from ..schemes import WeightScheme
from ..tools.finite import all_finite
from .quantized_rows import QuantizedRows, encode

MSE_RATIOS = tuple(1 - 0.04 * step for step in range(18))  # 1.0 down to 0.32 of the absmax


def quantize_rows(rows: Tensor, scheme: WeightScheme) -> QuantizedRows:
    """Round a weight, seen as rows by columns, to the nearest levels of a scheme.

    Args:
        rows: [R, C], floating point; a row is an output channel.
        scheme: Bits, granularity, grid and clip.

    Raises:
        NonFiniteError: If a weight is NaN or infinite.
        ValueError: If ``rows`` is not a non-empty matrix, a scale does not fit the scale type, or the scheme
            needs to know the layer's inputs.

    Example:
        >>> weights = torch.tensor([[-1.0, -0.3, 0.4, 1.0]])
        >>> quantize_rows(weights, WeightScheme(bits=2, grid="half", scale_dtype="float32")).dequantize()
        tensor([[-1.0000, -0.3333,  0.3333,  1.0000]])
    """
    if scheme.needs_inputs:
        raise ValueError(
            f"A {scheme} scheme with rounding={scheme.rounding!r} and clip={scheme.clip!r} is rounded by the moment of "
            "the layer's inputs, which a weight alone does not tell. Round it with round_candidates(model, batches) "
            "and pass the result as rounded=."
        )
    wide = finite_rows(rows)
    low, high = weight_ranges(wide, scheme)
    if scheme.clip != "mse":
        return _round(wide, low, high, 1.0 if scheme.clip == "absmax" else float(scheme.clip), scheme)
    return _least_squared_error(wide, low, high, scheme)


def finite_rows(rows: Tensor) -> Tensor:
    """Return a weight in float32 or wider, detached; raises as `checked_rows` does."""
    return checked_rows(rows).to(torch.promote_types(rows.dtype, torch.float32))


def checked_rows(rows: Tensor) -> Tensor:
    """Return a weight, detached.

    Raises:
        NonFiniteError: If a weight is NaN or infinite.
        ValueError: If ``rows`` is not a non-empty floating-point matrix.
    """
    if rows.dim() != 2 or rows.numel() == 0 or not rows.is_floating_point():
        raise ValueError(f"Expected a non-empty floating-point matrix, got {rows.dtype} {list(rows.shape)}.")
    if not all_finite(rows):
        raise NonFiniteError(f"{int((~torch.isfinite(rows)).sum())} of {rows.numel()} weights are NaN or infinite.")
    return rows.detach()


def weight_ranges(rows: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
    """Return least and largest weight under each scale, zero included, shaped like the scales."""
    if isinstance(scheme.granularity, int):
        block = min(scheme.granularity, rows.shape[1])
        padded = pad(rows, (0, -rows.shape[1] % block)).unflatten(1, (-1, block))
        low, high = padded.amin(2), padded.amax(2)
    else:
        over = (0, 1) if scheme.granularity == "tensor" else (1,)
        low, high = rows.amin(over, keepdim=True), rows.amax(over, keepdim=True)
    return low.clamp(max=0), high.clamp(min=0)


def _round(rows: Tensor, low: Tensor, high: Tensor, ratio: float | Tensor, scheme: WeightScheme) -> QuantizedRows:
    """Quantize with ranges shrunk by ``ratio``, a number or one per scale."""
    fitted = fit_scale(low * ratio, high * ratio, scheme)
    scale, zero_point = grid_named(scheme.grid).as_stored(*fitted, scheme.bits)
    return QuantizedRows(encode(rows, scale, zero_point, scheme), scale, zero_point, scheme)


def fit_scale(low: Tensor, high: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point, as stored, whose levels span the ranges ``low <= 0 <= high`` of any shape.

    Raises:
        ValueError: If a scale does not fit the scale type.
    """
    return grid_named(scheme.grid).fit(low, high, scheme.bits, scheme.scale_dtype)


def _least_squared_error(rows: Tensor, low: Tensor, high: Tensor, scheme: WeightScheme) -> QuantizedRows:
    """Choose, for each scale on its own, the ratio of its range with the least squared weight error."""
    best_ratio = torch.ones_like(low)
    best_error = torch.full_like(low, torch.inf)
    for ratio in MSE_RATIOS:
        trial = _round(rows, low, high, ratio, scheme)
        squared = (trial.dequantize(rows.dtype) - rows).square()
        error = sum_per_scale(squared, scheme)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_ratio = torch.where(better, torch.full_like(best_ratio, ratio), best_ratio)
    return _round(rows, low, high, best_ratio, scheme)


def sum_per_scale(values: Tensor, scheme: WeightScheme) -> Tensor:
    """Sum [R, C] over what shares a scale; the result is shaped like the scales."""
    if isinstance(scheme.granularity, int):
        block = min(scheme.granularity, values.shape[1])
        return pad(values, (0, -values.shape[1] % block)).unflatten(1, (-1, block)).sum(2)
    return values.sum((0, 1) if scheme.granularity == "tensor" else 1, keepdim=True)
