"""Rounded values whose gradient is that of the values themselves, for fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..schemes import InputScheme
from .quantizer import quantize_inputs


def rounded_straight_through(
    x: Tensor, scheme: InputScheme, scale: Tensor | None = None, zero_point: Tensor | None = None
) -> Tensor:
    """Return what `quantize_inputs` returns; the gradient is 1 where a value is in the range, and 0 beyond it.

    Args:
        x: Floating-point values.
        scheme: How.
        scale: As stored, shape []; None where each token has its own.
        zero_point: Likewise.
    """
    rounded: Tensor = _Rounded.apply(x, scheme, scale, zero_point)
    return rounded


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scheme: InputScheme, scale: Tensor | None, zero_point: Tensor | None) -> Tensor:
        ctx.inside = None
        if scale is not None and zero_point is not None:
            low = (-zero_point.to(scale.dtype) - 0.5) * scale
            ctx.inside = (x >= low) & (x <= low + 2**scheme.bits * scale)
        return quantize_inputs(x, scheme, scale, zero_point)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return (gradient if ctx.inside is None else gradient * ctx.inside), None, None, None
