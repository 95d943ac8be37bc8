"""Rounded values whose gradient is that of the values themselves, for fine-tuning, with a range that may learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schemes import InputScheme
from .quantizer import quantize_inputs


def rounded_straight_through(
    x: Tensor,
    scheme: InputScheme,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    learned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return what `quantize_inputs` returns; the gradient is 1 where a value is in the range, and 0 beyond it.

    With v = x / s and levels q from lo to hi, and "in the range" meaning ``lo - 1/2 <= v <= hi + 1/2``, the gradient of
    the scale is that of LSQ (Esser et al. 2020, arXiv:1902.08153, equation 3): q - v in the range, else lo or hi.

    Args:
        x: Floating-point values.
        scheme: How.
        scale: As stored, shape []; None where each token has its own.
        zero_point: Likewise.
        learned: The parameter whose gradient is that of the scale times a slope, and the slope, both of shape [].
    """
    relative, slope = learned or (None, None)
    rounded: Tensor = _Rounded.apply(x, relative, scale, zero_point, slope, scheme)
    return rounded


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        relative: Tensor | None,
        scale: Tensor | None,
        zero_point: Tensor | None,
        slope: Tensor | None,
        scheme: InputScheme,
    ) -> Tensor:
        ctx.scheme, ctx.has_range = scheme, scale is not None
        if ctx.has_range:
            ctx.save_for_backward(x, scale, zero_point, slope)
        return quantize_inputs(x, scheme, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, of_relative = gradients[0], None
        if ctx.has_range:
            x, scale, zero_point, slope = ctx.saved_tensors
            steps = x.to(torch.promote_types(x.dtype, torch.float32)) / scale
            low = -zero_point.to(scale.dtype)
            high = low + (2**ctx.scheme.bits - 1)
            inside = (steps >= low - 0.5) & (steps <= high + 0.5)
            if ctx.needs_input_grad[1]:
                level = torch.minimum(torch.maximum(steps.round(), low), high)
                of_relative = (gradient * torch.where(inside, level - steps, level)).sum() * slope
            gradient = gradient * inside
        return gradient, of_relative, None, None, None, None
