"""Rounding that gradients pass straight through, with a learned step size: one fused forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..grids.levels import Levels
from ..grids.registry import grid_named
from ..quantizers.nearest import sum_per_scale
from ..quantizers.quantized_rows import placed
from ..schemes import WeightScheme


class FakeQuantizedRows(torch.autograd.Function):
    """Weights rounded to a grid whose backward pass is that of LSQ (Esser et al. 2020, arXiv:1902.08153).

    With v = w / s, levels q between lo and hi, and ``w_hat = s q(v)``, where "inside" means
    ``lo - margin <= v <= hi + margin`` and everything else is clipped:

        d w_hat / d w = 1 inside, else 0                  (equation 5)
        d w_hat / d s = q - v inside, else q, lo or hi    (equation 3)

    The paper has ``margin`` 0. Half a step treats outermost levels like all others: what rounds to them without
    an error above half a step goes on learning.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        relative_scale: Tensor,
        scale: Tensor,
        slope: Tensor,
        zero_point: Tensor | None,
        scheme: WeightScheme,
        margin: float,
    ) -> Tensor:
        """Return the weights that a packed layer with these scales would compute with, to the last bit.

        Args:
            ctx: What the backward pass needs.
            rows: [R, C], the weights that are trained.
            relative_scale: What learns: its gradient is that of the scale times ``slope``.
            scale: The scales as stored, shaped like ``relative_scale``.
            slope: Factor on the gradient of each scale.
            zero_point: uint8 like ``scale``, for the asymmetric grid.
            scheme: The grid.
            margin: See above, in steps.
        """
        values, levels = _side_by_side(rows, scale, zero_point, scheme)
        codes = levels.nearest(values)
        ctx.save_for_backward(rows, codes.to(torch.uint8), scale, slope, zero_point)
        ctx.scheme, ctx.margin = scheme, margin
        rounded = levels.values(codes)
        rounded.add_(values, alpha=0)  # a weight that is NaN or infinite must not pass for a level
        return rounded.view(rows.shape).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows and relative scale."""
        rows, codes, scale, slope, zero_point = ctx.saved_tensors
        scheme: WeightScheme = ctx.scheme
        values, levels = _side_by_side(rows, scale, zero_point, scheme)
        gradient = gradients[0].to(values.dtype).reshape(values.shape)
        steps = levels.in_steps(values)
        lowest, highest = levels.bounds(ctx.margin)
        inside = (steps >= lowest).logical_and_(steps <= highest).logical_and_(levels.step != 0)
        of_rows = of_scale = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.where(inside, gradient, 0.0).view(rows.shape).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            level = levels.level(codes.view(values.shape))
            products = level.sub_(torch.where(inside, steps, 0.0)).mul_(gradient)
            summed = products.sum(2) if products.dim() == 3 else sum_per_scale(products, scheme)
            of_scale = summed * slope
        return of_rows, of_scale, None, None, None, None, None


def _side_by_side(
    rows: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme
) -> tuple[Tensor, Levels]:
    """Return weights and levels, float32 or wider, that broadcast: [R, C], or [R, blocks, block] of whole blocks."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    values, columns, block = rows.to(wide), rows.shape[1], scheme.granularity
    if not isinstance(block, int) or columns % block:
        return values, placed(scale, zero_point, scheme, columns, wide)
    zero = None if zero_point is None else zero_point.to(wide).unsqueeze(2)
    levels = grid_named(scheme.grid).place(scale.to(wide).unsqueeze(2), zero, scheme.bits)
    return values.unflatten(1, (-1, block)), levels


class DenseGradient(torch.autograd.Function):
    """The identity, whose backward pass turns a sparse gradient into a dense one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the same values."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient, dense."""
        return gradients[0].to_dense() if gradients[0].is_sparse else gradients[0]
