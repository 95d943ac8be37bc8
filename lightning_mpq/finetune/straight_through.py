"""Rounding that gradients pass straight through, with a learned step size: one fused forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..policy import WeightScheme
from ..quantizers.grid import dequantize, encode, grid_offset, spread
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
        wide = torch.promote_types(rows.dtype, torch.float32)
        codes = encode(rows.to(wide), scale, zero_point, scheme)
        ctx.save_for_backward(rows, codes, scale, slope, zero_point)
        ctx.scheme, ctx.margin = scheme, margin
        rounded = dequantize(codes, scale, zero_point, scheme, rows.dtype)
        return rounded.add_(rows, alpha=0)  # a weight that is NaN or infinite must not pass for a level

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of rows and relative scale."""
        rows, codes, scale, slope, zero_point = ctx.saved_tensors
        scheme: WeightScheme = ctx.scheme
        wide = torch.promote_types(rows.dtype, torch.float32)
        gradient = gradients[0].to(wide)
        columns = rows.shape[1]
        steps_of = spread(scale.to(wide), scheme, columns)
        live = steps_of != 0
        steps = rows.to(wide) / torch.where(live, steps_of, torch.ones_like(steps_of))
        offset = grid_offset(scheme) if zero_point is None else spread(zero_point.to(wide), scheme, columns)
        top = 2**scheme.bits - 1
        inside = (steps >= -offset - ctx.margin) & (steps <= top - offset + ctx.margin) & live
        of_rows = of_scale = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.where(inside, gradient, torch.zeros_like(gradient)).to(rows.dtype)
        if ctx.needs_input_grad[1]:
            levels = codes.to(wide) - offset
            slopes = torch.where(inside, levels - steps, levels)
            of_scale = sum_per_scale(gradient * slopes, scheme) * slope
        return of_rows, of_scale, None, None, None, None, None


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
