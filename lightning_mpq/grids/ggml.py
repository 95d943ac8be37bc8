"""Block types of ggml, which llama.cpp computes with: levels that are equally spaced, scales that share a factor.

Every block of 16 or 32 columns has a scale of its own. In the older types it is a float16 number; in the K types it is
an integer of 4 to 8 bits times a float16 factor of 256 columns. Types that end in ``_1``, and half of the K types, have
a least level beside it, stored in the same way; the others have one level more on the side of the larger weight.
See ggml-quants.c of llama.cpp, or ``gguf.quants``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import IntegerForm
from .uniform import UniformGrid

COLUMNS = 256
"""What shares a factor in the K types."""


def in_factors(values: Tensor, block: int, largest: int) -> tuple[Tensor, Tensor]:
    """Return numbers [..., blocks], none negative, as integers times a float16 factor of so many blocks.

    Args:
        values: One number for each block of columns.
        block: Columns in a block.
        largest: Largest integer; 0 for numbers that have no factor, but are in float16 themselves.

    Returns:
        Factors and integers as they broadcast with each other, float32: [..., superblocks, 1] and [..., superblocks,
        blocks in one].
    """
    wide = values.float()
    if not largest:
        return wide.half().float().unsqueeze(-1), torch.ones_like(wide).unsqueeze(-1)
    count = COLUMNS // block
    parts = pad(wide, (0, -wide.shape[-1] % count)).unflatten(-1, (-1, count))
    most = parts.amax(-1, keepdim=True)
    factor = (most / largest).half().float()
    steps = (parts / torch.where(factor == 0, torch.ones_like(factor), factor)).round().clamp(1, largest)
    steps = torch.where(parts == most, largest, steps)  # so that the factor can be told from what it gives
    return factor, torch.where((parts > 0) & (factor > 0), steps, torch.zeros_like(steps))


class GgmlGrid(UniformGrid):
    """Base of ggml's types.

    Attributes:
        block: Columns that share a scale.
        largest_scale: Largest integer that scales are stored as; 0 where they are float16 themselves.
    """

    block: ClassVar[int] = 32
    largest_scale: ClassVar[int] = 0
    learnable_scale = False

    def as_stored(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
        """See `Grid.as_stored`."""
        return self._stored(scale, self.largest_scale), zero_point

    def _stored(self, values: Tensor, largest: int) -> Tensor:
        factor, steps = in_factors(values, self.block, largest)
        return (factor * steps).flatten(-2)[..., : values.shape[-1]].to(values.dtype)


class SignedGrid(GgmlGrid):
    """Integers from -2**(bits-1), or up to 2**(bits-1) where the largest weight is positive (ggml: scale < 0)."""

    zero_point_bits = 8

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return torch.maximum(-low, high) / 2 ** (bits - 1)

    def zero_points(self, low: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Return the middle code, or the one before it."""
        larger = -low >= (2 ** (bits - 1) - 0.5) * scale
        return (2 ** (bits - 1) - (~larger).to(torch.uint8)).to(torch.uint8)

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return 2.0 ** (bits - 1)

    def integer_form(self, bits: int) -> IntegerForm:
        """See `Grid.integer_form`."""
        return IntegerForm(1, None)


class OffsetGrid(GgmlGrid):
    """Integers from 0, times a scale, less an offset; the zero point is one number over the other, and no integer."""

    zero_point_bits = 32
    zero_point_dtype = torch.float32

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return (high - low) / (2**bits - 1)

    def zero_points(self, low: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Return where zero lies between the codes."""
        return (-low / torch.where(scale == 0, torch.ones_like(scale), scale)).float()

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return (2**bits - 1) / 2

    def as_stored(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
        """See `Grid.as_stored`."""
        assert zero_point is not None
        kept = self._stored(scale, self.largest_scale)
        offset = self._stored(zero_point * scale.float(), self.largest_scale)
        return kept, offset / torch.where(kept == 0, torch.ones_like(kept), kept).float()


class Q4_0(SignedGrid):
    """4 bits, a scale for 32 columns: 4.5 bits a weight."""

    name, bits = "q4_0", (4,)


class Q5_0(SignedGrid):
    """5 bits, a scale for 32 columns: 5.5 bits a weight."""

    name, bits = "q5_0", (5,)


class Q8_0(SignedGrid):
    """8 bits, a scale for 32 columns: 8.5 bits a weight."""

    name, bits = "q8_0", (8,)


class Q4_1(OffsetGrid):
    """4 bits, a scale and a least level for 32 columns: 5 bits a weight."""

    name, bits = "q4_1", (4,)


class Q5_1(OffsetGrid):
    """5 bits, a scale and a least level for 32 columns: 6 bits a weight."""

    name, bits = "q5_1", (5,)


class Q2_K(OffsetGrid):
    """2 bits; scales and least levels of 16 columns in 4 bits: 2.625 bits a weight."""

    name, bits, block, largest_scale = "q2_k", (2,), 16, 15


class Q3_K(SignedGrid):
    """3 bits; scales of 16 columns in 6 bits with a sign: 3.4375 bits a weight."""

    name, bits, block, largest_scale = "q3_k", (3,), 16, 31


class Q4_K(OffsetGrid):
    """4 bits; scales and least levels of 32 columns in 6 bits: 4.5 bits a weight."""

    name, bits, block, largest_scale = "q4_k", (4,), 32, 63


class Q5_K(OffsetGrid):
    """5 bits; scales and least levels of 32 columns in 6 bits: 5.5 bits a weight."""

    name, bits, block, largest_scale = "q5_k", (5,), 32, 63


class Q6_K(SignedGrid):
    """6 bits; scales of 16 columns in 8 bits with a sign: 6.5625 bits a weight."""

    name, bits, block, largest_scale = "q6_k", (6,), 16, 127
