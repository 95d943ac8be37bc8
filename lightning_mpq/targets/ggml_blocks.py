"""Rounded weights as the bytes of ggml's blocks, nothing being rounded again; ``gguf.quants.dequantize`` reads them."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..grids.ggml import GgmlGrid, OffsetGrid, in_factors
from ..grids.registry import grid_named
from ..quantizers import QuantizedRows

Bytes = npt.NDArray[Any]  # uint8 everywhere; numpy's types make integers of what is shifted or masked
BLOCKS: dict[str, tuple[int, int]] = {
    "q4_0": (32, 18), "q4_1": (32, 20), "q5_0": (32, 22), "q5_1": (32, 24), "q8_0": (32, 34), "iq4_nl": (32, 18),
    "q2_k": (256, 84), "q3_k": (256, 110), "q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210),
}  # fmt: skip
"""Type to columns and bytes of what is stored together (``gguf.GGML_QUANT_SIZES``)."""
SHARED = {name: 16 if name in ("q2_k", "q3_k", "q6_k") else 32 for name in BLOCKS}
"""Type to columns that share a scale."""


def bytes_of(name: str, rows: int, columns: int) -> int:
    """Return the bytes of a weight."""
    block, size = BLOCKS[name]
    return rows * ceil(columns / block) * size


def as_blocks(quantized: QuantizedRows) -> Bytes:
    """Return [R, bytes] of a weight that was rounded to one of the types.

    Raises:
        ValueError: If its columns are no multiple of the type's.
    """
    name = quantized.scheme.grid
    columns, size = BLOCKS[name]
    rows, width = quantized.codes.shape
    if width % columns:
        raise ValueError(f"{name} stores {columns} columns together, and there are {width}")
    codes = quantized.codes.numpy().reshape(-1, columns)
    scale = quantized.scale.float()
    if name == "iq4_nl":
        parts = [_half(scale / 127), _nibbles(codes, 16)]
    elif isinstance(grid_named(name), OffsetGrid):
        assert quantized.zero_point is not None
        parts = _offset(name, codes, scale, quantized.zero_point * scale)
    else:
        parts = _signed(name, codes, scale, quantized)
    return np.concatenate([part.reshape(len(codes), -1) for part in parts], axis=1).reshape(rows, -1)


def _factors(name: str, values: Tensor) -> tuple[Bytes, Bytes]:
    """Return the float16 factors as bytes, and the integers of each superblock."""
    grid = grid_named(name)
    assert isinstance(grid, GgmlGrid)
    factor, steps = in_factors(values, grid.block, grid.largest_scale)
    return _half(factor), steps.to(torch.uint8).flatten(0, 1).numpy()


def _signed(name: str, codes: Bytes, scale: Tensor, quantized: QuantizedRows) -> list[Bytes]:
    """Types without a least level; where zero is not the middle code, scale and codes change their signs."""
    bits = quantized.scheme.bits
    assert quantized.zero_point is not None
    mirrored = quantized.zero_point < 2 ** (bits - 1)
    turned = mirrored.numpy().repeat(SHARED[name], axis=1).reshape(codes.shape)
    codes = np.where(turned, 2**bits - 1 - codes, codes).astype(np.uint8)
    if name in ("q4_0", "q5_0", "q8_0"):
        factor = _half(torch.where(mirrored, -scale, scale))
        if name == "q8_0":
            return [factor, codes ^ np.uint8(128)]  # an int8, from 0 .. 255
        return [factor, _nibbles(codes, 16)] if name == "q4_0" else [factor, _fifth(codes), _nibbles(codes & 15, 16)]
    factor, steps = _factors(name, scale)
    signs = np.where(mirrored.numpy().reshape(steps.shape), -1, 1).astype(np.int8)
    signed = steps.astype(np.int8) * signs
    if name == "q6_k":
        low, high = _nibbles(codes & 15, 64), _spread(codes >> 4, 2, 32)
        return [low, high, signed.view(np.uint8), factor]
    above = (signed + 32).astype(np.uint8)
    low = (above[:, :8] & 15) | ((above[:, 8:] & 15) << 4)
    high = _or(above.reshape(-1, 4, 4) >> 4, [0, 2, 4, 6])
    return [_spread(codes >> 2, 1, 32), _spread(codes & 3, 2, 32), low, high, factor]


def _offset(name: str, codes: Bytes, scale: Tensor, offset: Tensor) -> list[Bytes]:
    """Types with a least level, which is the offset with its sign changed."""
    if name in ("q4_1", "q5_1"):
        fifth = [_fifth(codes)] if name == "q5_1" else []
        return [_half(scale), _half(-offset), *fifth, _nibbles(codes & 15, 16)]
    (factor, steps), (least, least_steps) = _factors(name, scale), _factors(name, offset)
    if name == "q2_k":
        return [steps | (least_steps << 4), _spread(codes, 2, 32), factor, least]
    packed = np.concatenate(
        [
            (steps[:, :4] & 63) | ((steps[:, 4:] >> 4) << 6),
            (least_steps[:, :4] & 63) | ((least_steps[:, 4:] >> 4) << 6),
            (steps[:, 4:] & 15) | ((least_steps[:, 4:] & 15) << 4),
        ],
        axis=1,
    )
    fifth = [_spread(codes >> 4, 1, 32)] if name == "q5_k" else []
    return [factor, least, packed, *fifth, _nibbles(codes & 15, 32)]


def _half(values: Tensor) -> Bytes:
    return values.half().contiguous().numpy().reshape(-1, 1).view(np.uint8)


def _nibbles(codes: Bytes, run: int) -> Bytes:
    """Put codes of 4 bits in twos: a run of columns into the low halves of bytes, the next into the high ones."""
    return _or(codes.reshape(len(codes), -1, 2, run), [0, 4])


def _spread(codes: Bytes, bits: int, run: int) -> Bytes:
    """Put codes of 1 or 2 bits in bytes: runs of columns one above the other, from the low bits up."""
    return _or(codes.reshape(len(codes), -1, 8 // bits, run), list(range(0, 8, bits)))


def _or(parts: Bytes, shifts: list[int]) -> Bytes:
    """Join [N, ..., parts, run] to [N, bytes], each part shifted."""
    shifted = parts << np.array(shifts, dtype=np.uint8)[:, None]
    joined: Bytes = np.bitwise_or.reduce(shifted, axis=-2).reshape(len(parts), -1)
    return joined


def _fifth(codes: Bytes) -> Bytes:
    return np.packbits(codes >> 4, axis=1, bitorder="little")
