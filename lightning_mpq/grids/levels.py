"""Levels of a grid placed at given scales: which is nearest to a weight, what it is worth, and where its cell ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels(ABC):
    """Levels at scales that broadcast with weights of any shape.

    A level is said in units of the scale: a weight is ``step * level(code)``. Where a scale is zero, all codes stand
    for zero.

    Attributes:
        step: The scales, in the type that is computed in.
    """

    step: Tensor

    @abstractmethod
    def nearest(self, weights: Tensor) -> Tensor:
        """Return the codes of the nearest levels, in the weights' type; those beyond the range take the outermost."""

    @abstractmethod
    def level(self, codes: Tensor) -> Tensor:
        """Return levels of codes, in the type of ``step``."""

    @abstractmethod
    def bounds(self, margin: float) -> tuple[Tensor | float, Tensor | float]:
        """Return lowest and highest level, moved outwards by ``margin`` of the distance to the next level."""

    @abstractmethod
    def cell(self, codes: Tensor, reach: float, margin: float) -> tuple[Tensor, Tensor]:
        """Return between which values, in units of the scale, a weight is rounded to its code.

        Args:
            codes: The codes.
            reach: How far from the level, as a part of the distance to the next one; 1/2 is the whole cell.
            margin: The same beyond the outermost levels, if that is less.
        """

    @abstractmethod
    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with a function applied to every tensor that is shaped like ``step``."""

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Levels], dim: int) -> Levels:
        """Return the levels of several weights that lie side by side along a dimension."""

    def _nonzero(self) -> Tensor:
        """Return the scales, 1 where they are zero."""
        return torch.where(self.step == 0, torch.ones_like(self.step), self.step)

    @cached_property
    def _divisor(self) -> Tensor:
        """The same, made once: error feedback divides by it in every column."""
        return self._nonzero()

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights that codes stand for."""
        return self.step * self.level(codes)

    def write(self, codes: Tensor, out: Tensor) -> None:
        """Write the same into a tensor of the type that is computed in, from codes of any type; nothing is recorded."""
        out.copy_(self.values(codes.to(out.dtype)))

    def in_steps(self, weights: Tensor) -> Tensor:
        """Return weights in units of the scale; unchanged where the scale is zero."""
        compiling = torch.compiler.is_compiling()  # which cannot trace the lock of a cached property
        return weights / (self._nonzero() if compiling else self._divisor)
