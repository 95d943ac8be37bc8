"""Rounding that gradients pass straight through, with a learned step size: one fused forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..policy import WeightScheme
from ..quantizers.grid import grid_offset, nearest_codes, spread
from ..quantizers.nearest import sum_per_scale


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
        values, step, offset = _side_by_side(rows, scale, zero_point, scheme)
        codes = nearest_codes(values, step, offset, scheme)
        ctx.save_for_backward(rows, codes.to(torch.uint8), scale, slope, zero_point)
        ctx.scheme, ctx.margin = scheme, margin
        rounded = codes.sub_(offset).mul_(step)
        rounded.add_(values, alpha=0)  # a weight that is NaN or infinite must not pass for a level
        return rounded.view(rows.shape).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows and relative scale."""
        rows, codes, scale, slope, zero_point = ctx.saved_tensors
        scheme: WeightScheme = ctx.scheme
        values, step, offset = _side_by_side(rows, scale, zero_point, scheme)
        gradient = gradients[0].to(values.dtype).reshape(values.shape)
        dead = step == 0
        steps = values / torch.where(dead, torch.ones_like(step), step)
        lowest = torch.where(dead, torch.inf, -offset - ctx.margin)
        inside = (steps >= lowest).logical_and_(steps <= 2**scheme.bits - 1 - offset + ctx.margin)
        of_rows = of_scale = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.where(inside, gradient, 0.0).view(rows.shape).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            levels = codes.view(values.shape).to(values.dtype).sub_(offset)
            products = levels.sub_(torch.where(inside, steps, 0.0)).mul_(gradient)
            summed = products.sum(2) if products.dim() == 3 else sum_per_scale(products, scheme)
            of_scale = summed * slope
        return of_rows, of_scale, None, None, None, None, None


def _side_by_side(
    rows: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: WeightScheme
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Return weights, scales and offsets, float32 or wider, that broadcast: [R, C], or [R, blocks, block] if whole."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    values, columns, block = rows.to(wide), rows.shape[1], scheme.granularity
    small = [scale.to(wide)] if zero_point is None else [scale.to(wide), zero_point.to(wide)]
    if isinstance(block, int) and columns % block == 0:
        values = values.unflatten(1, (-1, block))
        small = [each.unsqueeze(2) for each in small]
    else:
        small = [spread(each, scheme, columns) for each in small]
    return values, small[0], small[1] if len(small) == 2 else grid_offset(scheme)


class DenseGradient(torch.autograd.Function):
    """The identity, behind which a sparse gradient is a dense one."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Return the same values."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient, dense."""
        return gradients[0].to_dense() if gradients[0].is_sparse else gradients[0]
