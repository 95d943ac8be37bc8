"""Grids whose levels are listed in a table, as quantiles of a distribution may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, maximum

from .base import Grid
from .levels import Levels


@dataclass(frozen=True)
class TableLevels(Levels):
    """Levels of any spacing, the same for all weights.

    Attributes:
        table: [levels], ascending, in the type of ``step``.
    """

    table: Tensor

    def nearest(self, weights: Tensor) -> Tensor:
        """See `Levels.nearest`."""
        borders = (self.table[1:] + self.table[:-1]) / 2
        return torch.bucketize(self.in_steps(weights).contiguous(), borders).to(weights.dtype)

    def level(self, codes: Tensor) -> Tensor:
        """See `Levels.level`."""
        return self.table[codes.long()]

    def bounds(self, margin: float) -> tuple[Tensor, Tensor]:
        """See `Levels.bounds`."""
        low, high = self.table[0], self.table[-1]
        return low - margin * (self.table[1] - low), high + margin * (high - self.table[-2])

    def cell(self, codes: Tensor, reach: float, margin: float) -> tuple[Tensor, Tensor]:
        """See `Levels.cell`."""
        lowest, highest = self.bounds(min(reach, margin))
        gaps = reach * self.table.diff()
        low = torch.cat([lowest[None], self.table[1:] - gaps])
        high = torch.cat([self.table[:-1] + gaps, highest[None]])
        return low[codes.long()], high[codes.long()]

    @classmethod
    def join(cls, parts: Sequence[Levels], dim: int) -> TableLevels:
        """See `Levels.join`."""
        first = parts[0]
        assert isinstance(first, TableLevels)
        return cls(torch.cat([part.step for part in parts], dim=dim), first.table)


class TableGrid(Grid):
    """Base of grids that a table defines.

    Attributes:
        table: The levels, ascending, the largest magnitude being 1: a scale is the largest weight.
    """

    table: ClassVar[tuple[float, ...]]

    def exact_scale(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """See `Grid.exact_scale`."""
        return maximum(-low, high)

    def place(self, scale: Tensor, zero_point: Tensor | None, bits: int) -> TableLevels:
        """See `Grid.place`."""
        return TableLevels(scale, torch.tensor(self.table, dtype=scale.dtype, device=scale.device))

    def largest_level(self, bits: int) -> float:
        """See `Grid.largest_level`."""
        return self.table[-1]
