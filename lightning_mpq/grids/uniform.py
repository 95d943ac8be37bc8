"""Grids of equally spaced levels, ``weight = scale * (code - offset)``, all of which can be rounded side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Grid
from .levels import Levels


@dataclass(frozen=True)
class UniformLevels(Levels):
    """Equally spaced levels.

    Attributes:
        offset: The codes that stand for zero, whole numbers or halves, shaped like ``step``.
        top: The largest codes, to broadcast with ``step``.
    """

    placed: ClassVar[tuple[str, ...]] = ("step", "offset", "top")
    offset: Tensor
    top: Tensor

    def nearest(self, weights: Tensor) -> Tensor:
        """See `Levels.nearest`."""
        return self.in_steps(weights).add_(self.offset).round_().clamp_(min=0).minimum(self.top)

    def level(self, codes: Tensor) -> Tensor:
        """See `Levels.level`."""
        return codes.to(self.step.dtype) - self.offset

    def write(self, codes: Tensor, out: Tensor) -> None:
        """See `Levels.write`."""
        out.copy_(codes).sub_(self.offset).mul_(self.step)

    def cost(self, weights: Tensor, costs: Tensor) -> Tensor:
        """See `Levels.cost`; errors are squared in units of the scale."""
        divisor = self._nonzero()
        steps = (weights / divisor).add_(self.offset)
        codes = steps.round()
        torch.minimum(codes, self.top, out=codes)
        squares = codes.clamp_(min=0).sub_(steps).square_().mul_(costs)
        return squares.sum(-1).mul_(divisor[..., 0].square())

    def bounds(self, margin: float) -> tuple[Tensor, Tensor]:
        """See `Levels.bounds`."""
        return -self.offset - margin, self.top - self.offset + margin

    def cell(self, codes: Tensor, reach: float, margin: float) -> tuple[Tensor, Tensor]:
        """See `Levels.cell`."""
        level, outside = self.level(codes), min(reach, margin)
        low = level - torch.where(codes == 0, outside, reach)
        return low, level + torch.where(codes == self.top, outside, reach)

    @classmethod
    def join(cls, parts: Sequence[Levels], dim: int) -> UniformLevels:
        """See `Levels.join`."""
        return cls(*(torch.cat([getattr(part, name) for part in parts], dim=dim) for name in cls.placed))


class UniformGrid(Grid):
    """Base of the grids whose levels are equally spaced."""

    @property
    def family(self) -> str:
        """One family for all of them."""
        return "uniform"

    def place(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> UniformLevels:
        """See `Grid.place`."""
        if zero_point is None:
            form = self.integer_form(bits)
            assert form is not None
            assert form.offset is not None
            zero_point = torch.full_like(scale, form.offset / form.steps)
        return UniformLevels(scale, zero_point, torch.full_like(scale[..., :1], 2**bits - 1))
