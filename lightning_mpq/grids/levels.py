"""Levels of a grid placed at given scales: which is nearest to a weight, what it is worth, and where its cell ends."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor


@dataclass(frozen=True)
class Levels(ABC):
    """Levels at scales that broadcast with weights of any shape.

    A level is said in units of the scale: a weight is ``step * level(code)``. Where a scale is zero, all codes stand
    for zero.

    Attributes:
        placed: Names of the tensors that are shaped like ``step``, or broadcast with it; the divisor is another.
        step: The scales, in the type that is computed in.
        divisor: The same, 1 where they are zero; None makes it anew each time that it is needed.
    """

    placed: ClassVar[tuple[str, ...]] = ("step",)
    step: Tensor
    divisor: Tensor | None = field(default=None, kw_only=True)

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

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the same with a function applied to every tensor that is shaped like ``step``."""
        own = {name: getattr(self, name) for name in (*self.placed, "divisor")}
        return replace(self, **{name: function(value) for name, value in own.items() if value is not None})

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Levels], dim: int) -> Levels:
        """Return the levels of several weights that lie side by side along a dimension."""

    def ready(self) -> Self:
        """Return the same with its divisor, so that levels at a part of the scales need not make it anew."""
        return replace(self, divisor=self._nonzero())

    def _nonzero(self) -> Tensor:
        """Return the scales, 1 where they are zero."""
        return self.step.masked_fill(self.step == 0, 1) if self.divisor is None else self.divisor

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights that codes stand for."""
        return self.step * self.level(codes)

    def write(self, codes: Tensor, out: Tensor) -> None:
        """Write the same into a tensor of the type that is computed in, from codes of any type; nothing is recorded."""
        out.copy_(self.values(codes.to(out.dtype)))

    def in_steps(self, weights: Tensor) -> Tensor:
        """Return weights in units of the scale; unchanged where the scale is zero."""
        return weights / self._nonzero()

    def cost(self, weights: Tensor, costs: Tensor) -> Tensor:
        """Return the sum of squared rounding errors over the last dimension, each times its cost."""
        return self.values(self.nearest(weights)).sub_(weights).square_().mul_(costs).sum(-1)
