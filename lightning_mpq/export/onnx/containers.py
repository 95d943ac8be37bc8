"""Which ONNX integer type holds the codes of a scheme, and how ``DequantizeLinear`` turns them into the same weights.

``DequantizeLinear`` computes ``(level - zero_point) * scale`` from integers of 2, 4, 8 or 16 bits. So 3 bits are held
in 4, and 5, 6, 7 in 8. Levels of the half grid lie halfway between integers; they become integers as twice the level at
half the scale, which takes one bit more, or they stay as they are and half a scale is added afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...grids.registry import grid_named
from ...modules import PackedLayer
from ...modules.inspection import shape_of
from ...network.layer_kinds import ParameterView, float_class
from ...quantizers import QuantizedRows
from ...schemes import SCALE_BITS, WeightScheme

CONTAINER_BITS = (2, 4, 8, 16)
UNSATURATED = 2**14 - 1
"""Products of a signed level and a code up to this are exact on any processor: two of them fit 16 bits."""
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
    spread = scale.shape[1] > 1
    if quantized.zero_point is not None:
        zero_point = quantized.zero_point.to(torch.int32)
        largest = max(2**scheme.bits - 1, int(zero_point.max()))
        return HeldWeight(f"UINT{_container(largest.bit_length(), two_bits)}", codes, scale, block, zero_point)
    chosen = container_of(scheme, multiplied=multiplied, spread=spread, two_bits=two_bits)
    levels = codes - 2 ** (scheme.bits - 1)
    if chosen.doubled:
        return HeldWeight(f"INT{chosen.bits}", 2 * levels + 1, halved(scale), block)
    return HeldWeight(f"INT{chosen.bits}", levels, scale, block, add_half=chosen.add_half)


class Container(NamedTuple):
    """How many bits hold a code, and how the half grid is said in integers.

    Attributes:
        bits: Of the ONNX type.
        doubled: Whether levels are twice what they are, at half the scale.
        add_half: Whether half a scale is added afterwards instead.
    """

    bits: int
    doubled: bool = False
    add_half: bool = False


def container_of(scheme: WeightScheme, *, multiplied: bool, spread: bool, two_bits: bool) -> Container:
    """Return which type holds the codes of a scheme; a zero point beyond the codes may need a wider one.

    Args:
        scheme: The scheme.
        multiplied: See `hold`.
        spread: Whether a row has several scales: half of them would have to be added block by block.
        two_bits: See `hold`.
    """
    plain = Container(_container(scheme.bits, two_bits))
    form = grid_named(scheme.grid).integer_form(scheme.bits)
    assert form is not None
    if form.steps == 1:
        return plain
    doubled = Container(_container(scheme.bits + 1, two_bits), doubled=True)
    fused = multiplied and scheme.bits < 8  # onnxruntime multiplies with integers of at most 8 bits
    return doubled if doubled.bits == plain.bits or fused or spread else plain._replace(add_half=True)


def may_have_two_bits(scheme: WeightScheme, rows: int, *, multiplied: bool, folded: bool) -> bool:
    """Tell whether onnxruntime (1.32) is right with containers of 2 bits.

    It multiplies wrongly unless rows are a multiple of 4, and where it dequantizes once, when a model is loaded, it
    fails on UINT2 ("element type mismatch between tensor proto and ortvalue").

    Args:
        scheme: The scheme.
        rows: Rows of the weight.
        multiplied: See `hold`.
        folded: Whether anything but a product uses the weight.
    """
    unsigned = grid_named(scheme.grid).zero_point_bits > 0
    return (not multiplied or rows % 4 == 0) and not (folded and unsigned)


def multiplies(layer: nn.Module) -> bool:
    """Tell whether a layer, packed or not, becomes a matrix product by its weight."""
    if not isinstance(layer, ParameterView):
        return float_class(layer) is nn.Linear
    shape = layer.weight_shape if isinstance(layer, PackedLayer) else layer.weight.shape
    return not layer.kind.fused and len(shape) == 2  # of experts, slices are multiplied


def held_bits(layer: nn.Module, scheme: WeightScheme, *, by_integers: bool = False, two_bits: bool = True) -> int:
    """Return the bits of levels, scales and zero points in an ONNX file; each of these fills whole bytes.

    Args:
        layer: The layer, packed or not.
        scheme: Its scheme.
        by_integers: Whether inputs are quantized: half a scale is then never added.
        two_bits: See `hold`.
    """
    (rows, columns), multiplied = shape_of(layer), multiplies(layer)
    scales = scheme.scale_count(rows, columns)
    spread = scales > rows
    two_bits = two_bits and may_have_two_bits(scheme, rows, multiplied=multiplied, folded=not multiplied)
    chosen = container_of(scheme, multiplied=multiplied or by_integers, spread=spread, two_bits=two_bits)
    tensors = [(rows * columns, chosen.bits), (scales * (2 if chosen.add_half else 1), SCALE_BITS[scheme.scale_dtype])]
    if grid_named(scheme.grid).zero_point_bits:
        tensors.append((scales, chosen.bits))
    return sum(8 * ceil(count * bits / 8) for count, bits in tensors)


def may_saturate(scheme: WeightScheme, largest_code: int) -> bool:
    """Tell whether some weights have products beyond `UNSATURATED`.

    These are exact by unsigned weights only, by which onnxruntime multiplies no faster than by floats.

    Args:
        scheme: Of the weight.
        largest_code: Of the inputs.
    """
    largest = 2 ** (scheme.bits - 1) if scheme.grid == "symmetric" else 2**scheme.bits - 1
    return largest * largest_code > UNSATURATED


def _container(bits: int, two_bits: bool) -> int:
    return next(width for width in CONTAINER_BITS if width >= bits and (two_bits or width > 2))


def halved(scale: Tensor) -> Tensor:
    """Return half of each scale, exactly: in float32 if the type's smallest numbers have no half in it."""
    half = scale / 2
    return half if torch.equal(half * 2, scale) else scale.float() / 2
