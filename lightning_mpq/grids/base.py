"""What a grid is: how a scale is found, where the levels lie, and what is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from ..tools.finite import all_finite
from .levels import Levels

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class IntegerForm:
    """A grid said in integers: ``weight = scale / steps * (steps * code - offset)``.

    Attributes:
        steps: By what codes are multiplied, 1 or 2.
        offset: What is taken away; None where that is a zero point stored with each scale (``steps`` is then 1).
    """

    steps: int
    offset: int | None

    def fits_signed(self, bits: int, width: int) -> bool:
        """Tell whether all integers of codes of ``bits`` bits, whatever the zero point, fit a signed ``width``."""
        span = self.steps * (2**bits - 1)
        low, high = (-span, span) if self.offset is None else (-self.offset, span - self.offset)
        return low >= -(2 ** (width - 1)) and high < 2 ** (width - 1)


class Grid(ABC):
    """A set of levels, known by its name in schemes, policies and files.

    A grid of one's own is a subclass in one file; `register_grid` makes an instance known, and all that rounds,
    profiles, allocates, packs, saves and fine-tunes weights then works with it. Exports and kernels that need integers
    ask for `integer_form`, and refuse by name a grid that has none.

    Attributes:
        name: Its name.
        bits: Widths that it has levels for.
        zero_point_bits: Bits that are stored beside each scale.
        zero_point_dtype: Type of what is stored there.
        learnable_scale: Whether fine-tuning may change scales one by one, as it may not where they share a factor.
        family: Grids of one family are rounded side by side; their `Levels` can be joined.
    """

    name: ClassVar[str]
    bits: ClassVar[tuple[int, ...]] = ALL_BITS
    zero_point_bits: ClassVar[int] = 0
    zero_point_dtype: ClassVar[torch.dtype] = torch.uint8
    learnable_scale: ClassVar[bool] = True

    @property
    def family(self) -> str:
        """The family, by default that of this grid alone."""
        return self.name

    @abstractmethod
    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """Return the scale at which the levels span the range ``low <= 0 <= high``, not yet in its stored type."""

    @abstractmethod
    def place(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> Levels:
        """Return the levels at given scales, and zero points in the same type, which broadcast with weights."""

    @abstractmethod
    def largest_level(self, bits: int) -> float:
        """Return the largest level in units of the scale: the Q of LSQ's gradient scale; of a range, half of it."""

    def zero_points(self, low: Tensor, scale: Tensor, bits: int) -> Tensor | None:
        """Return the zero points as stored for ranges from ``low`` at scales as stored; None if there are none."""
        return None

    def as_stored(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> tuple[Tensor, Tensor | None]:
        """Return scales and zero points of whole rows, [..., blocks], such as can be stored together.

        By default they are as they were found, one by one; scales of a grid may share a factor.
        """
        return scale, zero_point

    def integer_form(self, bits: int) -> IntegerForm | None:
        """Return the grid said in integers; None if its levels are not equally spaced."""
        return None

    def fit(self, low: Tensor, high: Tensor, bits: int, scale_dtype: str) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero point, as stored, whose levels span the ranges ``low <= 0 <= high`` of any shape.

        Raises:
            ValueError: If a scale does not fit the scale type.
        """
        exact = self.exact_scale(low, high, bits)
        scale = exact.to(getattr(torch, scale_dtype))
        if not all_finite(scale) or ((scale == 0) & (exact != 0)).any():
            raise ValueError(
                f"A scale of {float(exact.max()):.3g} (or the smallest, {float(exact.min()):.3g}) does not fit "
                f"{scale_dtype}. Choose scale_dtype='bfloat16' or 'float32', or rescale the layer."
            )
        return scale, self.zero_points(low, scale.to(low.dtype), bits)

    def stored_bits(self, count: int, scales: int, bits: int, scale_bits: int) -> int:
        """Return the bits that ``count`` codes with so many scales occupy.

        Codes are packed eight at a time into ``bits`` bytes, so that only the last block is padded.
        """
        return ceil(count / 8) * 8 * bits + scales * (scale_bits + self.zero_point_bits)
