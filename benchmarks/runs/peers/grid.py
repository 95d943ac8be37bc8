"""What a quantized layer says of itself: the one count of its bytes, and whether its weights are on its grid."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

SCALE_BYTES = 2
"""A scale counts as 16 bits, as ours are stored, whatever type a peer keeps it in."""
FLOATS = {32: torch.float32, 16: torch.float16}
"""Widths of layers that are left in float, to the types that their weights are stored in."""
TOLERANCE = 0.02
"""How far from an integer a code may be: float32 arithmetic in another order is within a thousandth."""


class Layer(NamedTuple):
    """A layer whose weight is to be quantized, seen as rows (output channels) by columns."""

    rows: int
    columns: int


class QuantizedLayer(NamedTuple):
    """A quantized weight: ``weight = scale * (code - zero_point)``, code an integer in 0 .. 2**bits - 1.

    Attributes:
        weight: The dequantized weight in the layer's own shape, float32.
        bits: Width of a code; one of `FLOATS` for a weight that is not quantized.
        scale: [rows, blocks], or [1, 1] for one of the whole tensor.
        zero_point: Shaped like ``scale`` if stored with each, or one number, which is then the same in all scales.
        block: Columns that share a scale; all of them for a scale a row.
    """

    weight: Tensor
    bits: int
    scale: Tensor
    zero_point: Tensor
    block: int


def stored_bytes(layer: Layer, answer: QuantizedLayer) -> int:
    """Return the bytes of a layer: codes, eight at a time, its scales, and zero points that are stored.

    A zero point of a grid itself (0, the middle, or half a level beside it) is not stored. One that is an integer takes
    a byte, any other as much as a scale.

    Example:
        >>> half = QuantizedLayer(torch.zeros(4, 8), 3, torch.ones(4, 1), torch.tensor([3.5]), 8)
        >>> stored_bytes(Layer(4, 8), half)
        20
    """
    if answer.bits in FLOATS:
        return answer.bits // 8 * layer.rows * layer.columns
    codes = ceil(layer.rows * layer.columns / 8) * answer.bits
    middle = 2.0 ** (answer.bits - 1)
    zero = answer.zero_point.double()
    of_the_grid = zero.numel() == 1 and float(zero) in (0.0, middle - 1, middle - 0.5, middle)
    zero_bytes = 0 if of_the_grid else zero.numel() * (1 if bool((zero == zero.round()).all()) else SCALE_BYTES)
    return codes + SCALE_BYTES * answer.scale.numel() + zero_bytes


def fault(layer: Layer, answer: QuantizedLayer, before: Tensor) -> str | None:
    """Return what is wrong with a quantized layer; None if its weights are on the grid that it claims.

    Args:
        layer: Its size.
        answer: What a peer says.
        before: The float weight.
    """
    if answer.weight.shape != before.shape:
        return f"its weight has the shape {list(answer.weight.shape)}, expected {list(before.shape)}"
    for name in ("weight", "scale", "zero_point"):
        if not torch.isfinite(getattr(answer, name)).all():
            return f"its {name} is not finite everywhere"
    if answer.bits in FLOATS:
        same = torch.equal(answer.weight.float(), before.to(FLOATS[answer.bits]).float())
        return None if same else f"it claims {answer.bits} bits, a float weight as it was, but has changed it"
    if not 1 <= answer.bits <= 8:
        return f"it claims {answer.bits} bits, expected 1 to 8, or {' or '.join(map(str, FLOATS))} for a float weight"
    if not 1 <= answer.block <= layer.columns:
        return f"{answer.block} columns share a scale, expected 1 to {layer.columns}"
    blocks = ceil(layer.columns / answer.block)
    if tuple(answer.scale.shape) not in ((layer.rows, blocks), (1, 1)):
        return f"its scale has the shape {list(answer.scale.shape)}, expected {[layer.rows, blocks]} or [1, 1]"
    if answer.zero_point.numel() != 1 and answer.zero_point.shape != answer.scale.shape:
        return f"its zero point has the shape {list(answer.zero_point.shape)}, expected that of its scale, or [1]"
    return _off_grid(layer, answer, blocks)


def _off_grid(layer: Layer, answer: QuantizedLayer, blocks: int) -> str | None:
    def spread(values: Tensor) -> Tensor:
        of_blocks = values.double().expand(layer.rows, blocks)
        return of_blocks.repeat_interleave(answer.block, 1)[:, : layer.columns]

    rows = answer.weight.double().reshape(layer.rows, layer.columns)
    scale = spread(answer.scale)
    if bool((rows[scale == 0] != 0).any()):
        return "it has weights other than zero where its scale is zero"
    codes = rows / scale.where(scale != 0, 1.0) + spread(answer.zero_point)
    codes = codes.where(scale != 0, 0.0)
    off = float((codes - codes.round()).abs().max())
    if off > TOLERANCE:
        return f"a weight is {off:.3g} of a step off the grid it claims"
    low, high = int(codes.round().min()), int(codes.round().max())
    if low < 0 or high > 2**answer.bits - 1:
        return f"it has codes from {low} to {high}, and {answer.bits} bits hold 0 to {2**answer.bits - 1}"
    return None
