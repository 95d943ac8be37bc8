"""Integers from -2**(bits-1) to 2**(bits-1) - 1; zero is a level."""

from __future__ import annotations

from torch import Tensor, maximum

from .base import IntegerForm
from .uniform import UniformGrid


class SymmetricGrid(UniformGrid):
    """The mid-tread quantizer: signed integers times a scale."""

    name = "symmetric"

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return maximum(-low, high) / (2 ** (bits - 1) - 1)

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return 2.0 ** (bits - 1) - 1

    def integer_form(self, bits: int) -> IntegerForm:
        """See `Grid.integer_form`."""
        return IntegerForm(1, 2 ** (bits - 1))
