"""Values to codes and back, as ``QuantizeLinear`` and ``DequantizeLinear`` of ONNX compute it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..schemes import InputScheme


@dataclass(frozen=True)
class InputRange:
    """What a layer stores for its inputs: ``x = scale * (code - zero_point)``.

    Attributes:
        scale: Distance of two levels, a number of float32.
        zero_point: Code of zero, 0 .. 255.
    """

    scale: float
    zero_point: int

    def tensors(self, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """Return scale and zero point as they are stored: float32 and uint8, both of shape []."""
        return (
            torch.tensor(self.scale, dtype=torch.float32, device=device),
            torch.tensor(self.zero_point, dtype=torch.uint8, device=device),
        )


def range_between(low: float, high: float, scheme: InputScheme) -> InputRange:
    """Return the levels that reach from ``low`` to ``high``, or a step beyond, zero being one of them.

    Args:
        low: Least value to be represented; above zero it counts as zero.
        high: Largest value; below zero it counts as zero.
        scheme: Its ``bits`` and ``symmetric`` count.

    Example:
        >>> range_between(0.0, 2.55, InputScheme(8)).zero_point, range_between(-1.0, 1.0, InputScheme(8)).zero_point
        (0, 128)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    steps = 2**scheme.bits - 1
    if scheme.symmetric:
        scale, zero_point = max(-low, high) / (steps // 2), 2 ** (scheme.bits - 1)
    else:
        scale = (high - low) / steps
        zero_point = round(-low / scale) if scale > 0 else 0
    stored = float(torch.tensor(scale, dtype=torch.float32))
    if not 0 < stored < float("inf"):  # nothing but zeros, or numbers beyond float32
        return InputRange(1.0, zero_point)
    return InputRange(stored, zero_point)


def quantize_inputs(
    x: Tensor, scheme: InputScheme, scale: Tensor | None = None, zero_point: Tensor | None = None
) -> Tensor:
    """Return inputs rounded to the nearest level of a scheme, in their own type and shape.

    Ties go to the even code. The arithmetic is float32 or wider.

    Args:
        x: Floating-point inputs; along the last dimension of ``x`` lie the vectors of ``granularity="token"``.
        scheme: How.
        scale: As stored, shape []; None where each token has its own.
        zero_point: Likewise.

    Raises:
        TypeError: If the inputs are integers.

    Example:
        >>> scale, zero_point = InputRange(0.5, 0).tensors()
        >>> quantize_inputs(torch.tensor([-1.0, 0.25, 0.3, 9.0]), InputScheme(4), scale, zero_point)
        tensor([0.0000, 0.0000, 0.5000, 7.5000])
    """
    if not x.is_floating_point():
        raise TypeError(f"Quantized inputs are rounded from floating-point numbers, got {x.dtype}; pass x.float().")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if scale is None or zero_point is None:
        scale, zero_point = _of_tokens(wide, scheme)
    codes = (wide / scale).round() + zero_point
    return ((codes.clamp(0, 2**scheme.bits - 1) - zero_point) * scale).to(x.dtype)


def _of_tokens(x: Tensor, scheme: InputScheme) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point of each vector, [..., 1]."""
    steps = 2**scheme.bits - 1
    if scheme.symmetric:
        scale = x.abs().amax(-1, keepdim=True) / (steps // 2)
        middle = torch.full_like(scale, 2 ** (scheme.bits - 1))
        return torch.where(scale > 0, scale, torch.ones_like(scale)), middle
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    scale = (high - low) / steps
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round()
