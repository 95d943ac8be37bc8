"""A rounded weight: codes and scales on a grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..grids.levels import Levels
from ..grids.registry import grid_named
from ..schemes import WeightScheme
from ..tools.slices import some_of

_AT_ONCE = 2**20
"""Weights that are dequantized at once, 4 MiB in float32."""


@dataclass(frozen=True)
class QuantizedRows:
    """A weight of R rows and C columns on a grid.

    Attributes:
        codes: [R, C], uint8, each in 0 .. 2**bits - 1.
        scale: [1, 1] per tensor, [R, 1] per channel, [R, blocks] per block of columns; in the scheme's
            scale type. A scale of zero means that all weights under it are zero.
        zero_point: Same shape as ``scale``, in the grid's type; None unless it stores zero points.
        scheme: The scheme that it was rounded to.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    scheme: WeightScheme

    def part(self, rows: slice | Tensor) -> QuantizedRows:
        """Return some of the rows, by a slice or an index."""
        if self.scheme.granularity == "tensor":
            return replace(self, codes=self.codes[rows])
        zero_point = None if self.zero_point is None else self.zero_point[rows]
        return QuantizedRows(self.codes[rows], self.scale[rows], zero_point, self.scheme)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the weights as [R, C]; computed in float32 or wider, some rows at a time, then cast."""
        if self.codes.numel() <= _AT_ONCE:
            return dequantize(self.codes, self.scale, self.zero_point, self.scheme, dtype)
        found = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        for rows in some_of(found, _AT_ONCE):
            own = self.part(rows)
            found[rows] = dequantize(own.codes, own.scale, own.zero_point, own.scheme, dtype)
        return found

    def write(self, out: Tensor) -> None:
        """Write the weights into a tensor [R, C] of float32 or wider, with no copy in between."""
        levels, shape = placed_by_blocks(self.scale, self.zero_point, self.scheme, out.shape[1], out.dtype)
        levels.write(self.codes.view(*shape), out.view(*shape))


def dequantize(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme, dtype: torch.dtype
) -> Tensor:
    """Return the weights that codes stand for, [R, C] in ``dtype``; the arithmetic is float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    levels, shape = placed_by_blocks(scale, zero_point, scheme, codes.shape[1], wide)
    return levels.values(codes.to(wide).view(*shape)).view(codes.shape).to(dtype)


def encode(rows: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme) -> Tensor:
    """Return the nearest codes, uint8 [R, C], of weights [R, C] for given scales as stored.

    Weights beyond the range take the outermost level.
    """
    return placed(scale, zero_point, scheme, rows.shape[1], rows.dtype).nearest(rows).to(torch.uint8)


def placed(scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme, columns: int, dtype: torch.dtype) -> Levels:
    """Return the levels of a scheme's grid at scales as stored, to broadcast with [R, columns].

    Args:
        scale: Shaped as in `QuantizedRows`.
        zero_point: Likewise.
        scheme: The scheme.
        columns: Columns of the weight.
        dtype: Type that is computed in, float32 or wider.

    Example:
        >>> half = placed(torch.ones(1, 1), None, WeightScheme(bits=2, grid="half"), 4, torch.float32)
        >>> half.values(torch.arange(4.0)[None])
        tensor([[-1.5000, -0.5000,  0.5000,  1.5000]])
    """
    wide = None if zero_point is None else spread(zero_point.to(dtype), scheme, columns)
    return grid_named(scheme.grid).place(spread(scale.to(dtype), scheme, columns), wide, scheme.bits)


def placed_by_blocks(
    scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme, columns: int, dtype: torch.dtype
) -> tuple[Levels, tuple[int, ...]]:
    """Return levels as `placed` does, and the shape in which weights broadcast with them.

    That is [rows, blocks, columns of one] where blocks are whole, so that their scales need not be repeated.
    """
    size = scheme.granularity
    if not isinstance(size, int) or columns % size:
        return placed(scale, zero_point, scheme, columns, dtype), (-1, columns)
    wide = None if zero_point is None else zero_point.to(dtype)[..., None]
    return grid_named(scheme.grid).place(scale.to(dtype)[..., None], wide, scheme.bits), (-1, columns // size, size)


def spread(values: Tensor, scheme: WeightScheme, columns: int) -> Tensor:
    """Bring one value per block, [S, blocks], to a shape that broadcasts with [R, columns]."""
    if not isinstance(scheme.granularity, int):
        return values
    return values.repeat_interleave(min(scheme.granularity, columns), dim=1)[:, :columns]
