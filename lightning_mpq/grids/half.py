"""Levels halfway between integers, +-1/2, +-3/2, ...: the textbook's mid-rise quantizer."""

from __future__ import annotations

from torch import Tensor, maximum

from .base import IntegerForm
from .uniform import UniformGrid


class HalfLevelGrid(UniformGrid):
    """No level is zero, so that none of the few levels of a narrow grid is left without a counterpart."""

    name = "half"

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return maximum(-low, high) / self.largest_level(bits)

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return 2.0 ** (bits - 1) - 0.5

    def integer_form(self, bits: int) -> IntegerForm:
        """Return twice the level at half the scale."""
        return IntegerForm(2, 2**bits - 1)
