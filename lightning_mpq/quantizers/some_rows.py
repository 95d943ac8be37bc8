"""A large weight is rounded some rows at a time: rows that share no scale do not see each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..schemes import WeightScheme
from .clip_search import Scales
from .feedback_search import most_solved_again

SIDE_BY_SIDE, _LEAST_ROWS = 2**22, 2**13
"""Weights that are rounded side by side, all schemes and ranges counted (16 MiB of float32), and the fewest such rows:
with fewer, columns are so short that calls take longer than what they do."""


def some_rows(rows: Tensor, weights: Tensor, parts: int, schemes: Sequence[WeightScheme]) -> Iterator[list[Tensor]]:
    """Yield some rows of each part, and how much each counts, in float32 or wider; all where they share a scale.

    Args:
        rows: [parts * height, C], of any type.
        weights: [parts * height].
        parts: How many consecutive parts there are.
        schemes: What rows are rounded to, side by side.
    """
    wide = torch.promote_types(rows.dtype, torch.float32)
    by_part = [values.unflatten(0, (parts, -1)) for values in (rows, weights)]
    step = by_part[0].shape[1]
    if schemes[0].granularity != "tensor":
        step = max(1, rows_side_by_side(schemes, rows.shape[1]) // parts)
    for chunks in zip(*(values.split(step, dim=1) for values in by_part), strict=True):
        yield [values.flatten(0, 1).to(wide) for values in chunks]


def rows_side_by_side(schemes: Sequence[WeightScheme], columns: int) -> int:
    """Return how many rows of so many columns are rounded at once, to each of some schemes and every range tried."""
    trials = sum(1 + most_solved_again(scheme, columns) for scheme in schemes)
    return max(_LEAST_ROWS, SIDE_BY_SIDE // columns) // max(trials, 1)


class RowsSoFar:
    """Codes, errors and scales of a weight, gathered from `some_rows`.

    Codes, which are most of it, are written where they belong, so that they are never there twice.
    """

    def __init__(self, rows: Tensor, parts: int) -> None:
        """Make room for the codes of a weight, [parts * height, C]."""
        self._codes = torch.empty(rows.shape, dtype=torch.uint8, device=rows.device).unflatten(0, (parts, -1))
        self._errors: list[Tensor] = []
        self._scales: list[Scales] = []
        self._done = 0

    def add(self, codes: Tensor, errors: Tensor, scales: Scales) -> None:
        """Take the next rows of each part."""
        by_part = self._split(codes, 0)
        self._codes[:, self._done : self._done + by_part.shape[1]] = by_part
        self._done += by_part.shape[1]
        self._errors.append(errors)
        self._scales.append(scales)

    def codes(self) -> Tensor:
        """Return the codes of all rows, uint8 [parts * height, C]."""
        return self._codes.flatten(0, 1)

    def errors(self) -> Tensor:
        """Return the errors of all rows."""
        return self._joined(self._errors, 0)

    def scales(self) -> Scales:
        """Return the scales of all rows, or the one of a tensor."""
        if len(self._scales) == 1:
            return self._scales[0]
        points = [scales.zero_point for scales in self._scales if scales.zero_point is not None]
        return Scales(
            self._joined([each.scale for each in self._scales], 1), self._joined(points, 1) if points else None
        )

    def _split(self, values: Tensor, dim: int) -> Tensor:
        return values.unflatten(dim, (len(self._codes), -1))

    def _joined(self, values: Sequence[Tensor], dim: int) -> Tensor:
        return torch.cat([self._split(each, dim) for each in values], dim + 1).flatten(dim, dim + 1)
