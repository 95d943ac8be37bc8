"""Codes of 2..8 bits in exactly that many bits: a little-endian bit stream in uint8.

Eight codes of ``bits`` bits fill ``bits`` whole bytes, so that no pattern of shifts repeats beyond a block of
eight and every width is as easy as 4 or 8. Only shifts, masks and views of uint8: the same code runs on any
device, compiles, and exports.
"""

from __future__ import annotations

from functools import reduce
from math import ceil
from operator import or_

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..tools.checks import shown

BLOCK = 8
"""Codes per block; a block of ``bits``-wide codes occupies ``bits`` bytes."""
_AT_ONCE = 2**20
"""Codes that are packed at once, whole blocks: what is made on the way takes some bytes for each."""


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes occupy; the last block is padded.

    Example:
        >>> packed_size(9, bits=3)
        6
    """
    return ceil(count / BLOCK) * bits


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes, flattened in row-major order, into a little-endian bit stream.

    Code ``i`` occupies the bits ``i * bits .. (i + 1) * bits - 1`` of the stream; bit 0 of byte 0 comes first.

    Args:
        codes: uint8 of any shape, each below ``2**bits``.
        bits: Bits per code, 2..8.

    Returns:
        uint8 of shape [ceil(n / 8) * bits].

    Raises:
        TypeError: If the codes are not uint8.
        ValueError: If ``bits`` is not 2..8 or a code does not fit (not looked at inside of a trace).

    Example:
        >>> [f"{byte:08b}" for byte in pack_codes(torch.tensor([1, 2, 3, 4, 5], dtype=torch.uint8), bits=3)]
        ['11010001', '01011000', '00000000']
    """
    _check_bits(bits)
    if codes.dtype != torch.uint8:
        raise TypeError(f"Codes to pack must be uint8, got {codes.dtype}.")
    readable = codes.numel() > 0 and codes.device.type != "meta" and not torch.compiler.is_compiling()
    if readable and int(codes.max()) >= 2**bits:
        raise ValueError(f"Codes of {bits} bits must lie in 0 .. {2**bits - 1}, got {int(codes.max())}.")
    flat = codes.reshape(-1)
    if flat.numel() > _AT_ONCE and not torch.compiler.is_compiling():
        whole = flat.new_empty(packed_size(flat.numel(), bits))
        places = whole.split(packed_size(_AT_ONCE, bits))
        for place, some in zip(places, flat.split(_AT_ONCE), strict=True):
            place.copy_(_packed(some, bits))
        return whole
    return _packed(flat, bits)


def _packed(flat: Tensor, bits: int) -> Tensor:
    blocks = pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    packed = []
    for byte in range(bits):
        shifts = {k: bits * k - 8 * byte for k in range(BLOCK)}  # where code k starts, seen from this byte
        parts = [_shift_left(blocks[:, k], shift) for k, shift in shifts.items() if -bits < shift < 8]
        packed.append(reduce(or_, parts))
    return torch.stack(packed, dim=1).reshape(-1)


def unpack_codes(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first ``count`` codes of a stream that `pack_codes` wrote.

    Args:
        packed: uint8 of shape [..., m * bits]; leading dimensions hold streams of their own.
        bits: Bits per code, 2..8.
        count: Codes to return from each stream, at most 8 m.

    Returns:
        uint8 of shape [..., count].

    Raises:
        TypeError: If the stream is not uint8.
        ValueError: If ``bits`` is not 2..8, or the stream is not whole blocks or too short.
    """
    _check_bits(bits)
    if packed.dtype != torch.uint8:
        raise TypeError(f"A packed stream is uint8, got {packed.dtype}.")
    length = packed.shape[-1]
    if length % bits or count > length // bits * BLOCK:
        raise ValueError(
            f"{count} codes of {bits} bits need a stream of {packed_size(count, bits)} bytes, got {length}."
        )
    blocks = packed.reshape(*packed.shape[:-1], length // bits, bits)
    if torch.onnx.is_in_onnx_export():
        return torch.stack(_by_arithmetic(blocks.int(), bits), dim=-1).flatten(-2)[..., :count].to(torch.uint8)
    codes = packed.new_empty(*blocks.shape[:-1], BLOCK)
    for k in range(BLOCK):
        byte, shift = divmod(bits * k, 8)
        code = blocks[..., byte] >> shift
        if shift + bits > 8:
            code = code | (blocks[..., byte + 1] << (8 - shift))
        codes[..., k] = code
    return codes.bitwise_and_(2**bits - 1).flatten(-2)[..., :count]


def _by_arithmetic(blocks: Tensor, bits: int) -> list[Tensor]:
    """Return the codes of blocks, int32: torch gives constants of ONNX shifts and masks of bytes another type."""
    codes = []
    for k in range(BLOCK):
        byte, shift = divmod(bits * k, 8)
        code = blocks[..., byte] // 2**shift
        if shift + bits > 8:
            code = code + blocks[..., byte + 1] * 2 ** (8 - shift)
        codes.append(code % 2**bits)
    return codes


def _shift_left(values: Tensor, shift: int) -> Tensor:
    """Shift uint8 values left, or right if ``shift`` is negative; bits beyond the byte are lost."""
    return values << shift if shift >= 0 else values >> -shift


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"Codes have 2 to 8 bits, got {shown(bits)}.")
