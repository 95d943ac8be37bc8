"""Integers from 0 to 2**bits - 1, shifted by a zero point that is stored beside each scale; zero is a level."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import IntegerForm
from .uniform import UniformGrid


class AsymmetricGrid(UniformGrid):
    """Signed integers times a scale, for ranges that do not lie evenly around zero."""

    name = "asymmetric"
    zero_point_bits = 8

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return (high - low) / (2**bits - 1)

    def zero_points(self, low: Tensor, scale: Tensor, bits: int) -> Tensor:
        """Return the codes nearest to where zero lies, clamped to those that there are."""
        steps = -low / torch.where(scale == 0, torch.ones_like(scale), scale)
        return steps.round().clamp(0, 2**bits - 1).to(torch.uint8)

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return (2**bits - 1) / 2

    def integer_form(self, bits: int) -> IntegerForm:
        """See `Grid.integer_form`."""
        return IntegerForm(1, None)
