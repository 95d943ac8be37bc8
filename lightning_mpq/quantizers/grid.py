"""Grids of levels: ``weight = scale * (code - offset)`` with unsigned codes, for every kind of grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..policy import WeightScheme


@dataclass(frozen=True)
class QuantizedRows:
    """A weight of R rows and C columns on a grid.

    Attributes:
        codes: [R, C], uint8, each in 0 .. 2**bits - 1.
        scale: [1, 1] per tensor, [R, 1] per channel, [R, blocks] per block of columns; in the scheme's
            scale type. A scale of zero means that all weights under it are zero.
        zero_point: Same shape as ``scale``, uint8; None unless the grid is asymmetric.
        scheme: The scheme behind.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    scheme: WeightScheme

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as [R, C]; computed in float32 or wider, then cast."""
        return dequantize(self.codes, self.scale, self.zero_point, self.scheme, dtype)


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme, dtype: torch.dtype
) -> Tensor:
    """Return ``scale * (code - offset)`` as [R, C] in ``dtype``; the arithmetic is float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    columns = codes.shape[1]
    offset = grid_offset(scheme) if zero_point is None else spread(zero_point.to(wide), scheme, columns)
    return (spread(scale.to(wide), scheme, columns) * (codes.to(wide) - offset)).to(dtype)


def grid_offset(scheme: WeightScheme) -> float:
    """Return the code that stands for zero; between two codes on the half-level grid.

    Example:
        >>> grid_offset(WeightScheme(bits=2, grid="half")), grid_offset(WeightScheme(bits=2))
        (1.5, 2)
    """
    middle = 2 ** (scheme.bits - 1)
    return middle - 0.5 if scheme.grid == "half" else middle


def spread(values: Tensor, scheme: WeightScheme, columns: int) -> Tensor:
    """Bring one value per block, [S, blocks], to a shape that broadcasts with [R, columns]."""
    if not isinstance(scheme.granularity, int):
        return values
    return values.repeat_interleave(min(scheme.granularity, columns), dim=1)[:, :columns]


def encode(rows: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """Return the nearest codes, uint8 [R, C], of weights [R, C] for given scales as stored.

    Weights beyond the range take the outermost level.
    """
    columns = rows.shape[1]
    step = spread(scale.to(rows.dtype), scheme, columns)
    offset = grid_offset(scheme) if zero_point is None else spread(zero_point.to(rows.dtype), scheme, columns)
    return nearest_codes(rows, step, offset, scheme).to(torch.uint8)


def nearest_codes(values: Tensor, step: Tensor, offset: Tensor | float, scheme: WeightScheme) -> Tensor:
    """Return the nearest codes as floating-point numbers.

    Args:
        values: Weights of any shape.
        step: Their scales, to broadcast with them.
        offset: The codes that stand for zero, likewise.
        scheme: Bits and grid.
    """
    codes = values / torch.where(step == 0, torch.ones_like(step), step)
    if scheme.grid == "half":  # levels lie halfway between integers, so the nearest one is floor + 1/2
        codes.floor_().add_(2 ** (scheme.bits - 1))
    else:
        codes.round_().add_(offset)
    return codes.clamp_(0, 2**scheme.bits - 1)
