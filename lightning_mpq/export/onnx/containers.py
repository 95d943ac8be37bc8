"""Which ONNX integer type holds the codes of a scheme, and how ``DequantizeLinear`` turns them into the same weights.

``DequantizeLinear`` computes ``(level - zero_point) * scale`` from integers of 2, 4, 8 or 16 bits. So 3 bits are held
in 4, and 5, 6, 7 in 8. Levels of the half grid lie halfway between integers; they become integers as twice the level at
half the scale, which takes one bit more, or they stay as they are and half a scale is added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...grids.registry import grid_named
from ...quantizers import QuantizedRows

CONTAINER_BITS = (2, 4, 8, 16)
FOUR_BITS_OPSET, TWO_BITS_OPSET = 21, 25
"""The first versions of the standard operations that know INT4 and INT2."""


@dataclass(frozen=True)
class HeldWeight:
    """A rounded weight of R rows and C columns as ONNX holds it: ``scale * (levels - zero_point) [+ scale / 2]``.

    Attributes:
        container: ONNX type of the levels, as in ``INT4``.
        levels: [R, C], int32.
        scale: [1, 1], [R, 1] or [R, blocks], in the type that it is stored in.
        block: Columns that share a scale.
        zero_point: int32, shaped like ``scale``; None for zero.
        add_half: Whether half a scale is to be added.
    """

    container: str
    levels: Tensor
    scale: Tensor
    block: int
    zero_point: Tensor | None = None
    add_half: bool = False


def hold(quantized: QuantizedRows, *, multiplied: bool, two_bits: bool) -> HeldWeight:
    """Return codes and scales of a rounded weight as ``DequantizeLinear`` wants them; nothing is rounded.

    Args:
        quantized: The rounded weight.
        multiplied: Whether it is the right-hand side of a matrix product, which onnxruntime computes from the
            integers (``MatMulNBits``) unless something stands between: half a scale is then never added there.
        two_bits: Whether containers of 2 bits may be used.
    """
    scheme, scale = quantized.scheme, quantized.scale
    codes = quantized.codes.to(torch.int32)
    block = scheme.granularity if isinstance(scheme.granularity, int) else codes.shape[1]
    if quantized.zero_point is not None:
        zero_point = quantized.zero_point.to(torch.int32)
        largest = max(2**scheme.bits - 1, int(zero_point.max()))
        return HeldWeight(f"UINT{_container(largest.bit_length(), two_bits)}", codes, scale, block, zero_point)
    plain = HeldWeight(f"INT{_container(scheme.bits, two_bits)}", codes - 2 ** (scheme.bits - 1), scale, block)
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    assert form is not None
    if form.steps == 1:
        return plain
    doubled_container = f"INT{_container(scheme.bits + 1, two_bits)}"
    spread = scale.shape[1] > 1  # half a scale would have to be added block by block
    fused = multiplied and scheme.bits < 8  # onnxruntime multiplies with integers of at most 8 bits
    if doubled_container == plain.container or fused or spread:
        return HeldWeight(doubled_container, 2 * plain.levels + 1, halved(scale), block)
    return replace(plain, add_half=True)


def _container(bits: int, two_bits: bool) -> int:
    return next(width for width in CONTAINER_BITS if width >= bits and (two_bits or width > 2))


def halved(scale: Tensor) -> Tensor:
    """Return half of each scale, exactly: in float32 if the type's smallest numbers have no half in it."""
    half = scale / 2
    return half if torch.equal(half * 2, scale) else scale.float() / 2
