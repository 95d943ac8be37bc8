"""One weight, rounded to all that it is offered by the moment of its inputs, or a sample of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..groups.candidates import Candidate
from ..network.layer_kinds import row_parts, weight_rows
from ..quantizers import InputMoment, RoundedRows, RowRounding
from ..quantizers.nearest_search import error_of_rows, row_chunks
from ..schemes import WeightScheme

_Found = TypeVar("_Found")
SAMPLED_WEIGHTS = 24576
"""By so many weights, in whole rows, the grid of all is chosen."""


@dataclass(frozen=True)
class WeightRounding:
    """One weight with the moment of its inputs, or a sample of its rows.

    Attributes:
        layer: The name of its layer, for messages.
        rows: [R, C].
        rounding: Rounds by the moment, which is factorised once for all.
        counts: [R], how often each row of an embedding was looked up; None for other layers.
        known: What was rounded already.
    """

    layer: str
    rows: Tensor
    rounding: RowRounding
    counts: Tensor | None
    known: dict[WeightScheme, RoundedRows] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(
        cls, name: str, layer: nn.Module, moment: InputMoment | None, centred: bool, damping: float | None
    ) -> WeightRounding:
        """Take the weight of a layer; without a moment all its inputs count alike."""
        rows = weight_rows(layer).detach()
        if moment is None:
            return cls(name, rows, RowRounding(rows.new_ones(row_parts(layer), rows.shape[1])), None)
        chosen = moment.damping() if damping is None else damping
        return cls(name, rows, RowRounding(moment.form(centred), chosen), moment.row_counts)

    def sample(self) -> WeightRounding:
        """Return the same for some rows of each convolution group, or this very object if there are few.

        A few rows of a wide range may hold most of the error, so that half of the sample are those of the widest; the
        others stand for all that are left.
        """
        parts = len(self.rounding.moment)
        height, most = len(self.rows) // parts, max(2, SAMPLED_WEIGHTS // self.rows.shape[1] // parts)
        if height <= most:
            return self
        weights = torch.ones_like(self.rows[:, 0]) if self.counts is None else self.counts.to(self.rows)
        sizes = (self.rows.amax(1) - self.rows.amin(1)).square() * weights
        order = sizes.view(parts, height).argsort(dim=1, descending=True, stable=True)
        widest, others = order[:, : most // 2], order[:, most // 2 :]
        spaced = torch.linspace(0, others.shape[1] - 1, most - most // 2, device=order.device).long()
        index = torch.cat([widest, others[:, spaced]], dim=1)
        stands_for = torch.ones_like(index, dtype=self.rows.dtype)
        stands_for[:, widest.shape[1] :] = others.shape[1] / len(spaced)
        index = (torch.arange(parts, device=index.device)[:, None] * height + index).flatten()
        return replace(self, rows=self.rows[index], counts=weights[index] * stands_for.flatten(), known={})

    def round(self, schemes: Sequence[WeightScheme]) -> list[RoundedRows]:
        """Round to several schemes; errors are relative to the mean square of the layer's output."""
        left = [scheme for scheme in schemes if scheme not in self.known]
        unit = self._unit()
        for scheme, result in zip(left, self._named(self.rounding.round, left), strict=True):
            self.known[scheme] = result._replace(error=result.error * unit)
        return [self.known[scheme] for scheme in schemes]

    def errors(self, schemes: Sequence[WeightScheme]) -> list[float]:
        """Return errors to compare grids by: about those of all rows, told by some of them and by a bound.

        A layer of few weights is rounded: that is quick, and chance tells its grids apart.
        """
        sample = self.sample()
        if sample is self:
            return [result.error for result in self.round(schemes)]
        unit = sample._unit()
        return [error * unit for error in sample._named(sample.rounding.errors, schemes)]

    def _named(self, work: Callable[..., list[_Found]], schemes: Sequence[WeightScheme]) -> list[_Found]:
        """Return what work finds; its errors name the layer."""
        try:
            return work(self.rows, schemes, self.counts)
        except ValueError as error:
            raise type(error)(f"Layer {self.layer!r}: {error}") from error

    def _unit(self) -> float:
        """Return one over the mean square of the layer's output, 0 where that is zero."""
        wide = torch.promote_types(self.rows.dtype, torch.float32)
        moment = self.rounding.moment.to(wide)
        parts = row_chunks(self.rows, moment)
        energy = torch.cat([error_of_rows(self.rows[part].to(wide), moment) for part in parts])
        total = float((energy if self.counts is None else energy * self.counts).sum())
        return 1 / total if total > 0 else 0.0


def best_grids(candidates: Sequence[Candidate], group: Sequence[WeightRounding], weights: int) -> list[Candidate]:
    """Return the best among those that differ only in their grid, by a sample of rows.

    Schemes of a weight that is offered with several schemes of inputs are compared once.
    """
    first = {candidate.scheme.weight: candidate for candidate in reversed(candidates)}
    schemes = list(dict.fromkeys(candidate.scheme.weight for candidate in candidates))
    kinds = [_without_grid(scheme) for scheme in schemes]
    if len(set(kinds)) == len(kinds):
        return list(candidates)
    sampled = [each.errors(schemes) for each in group]
    # A bit more per weight makes steps half as wide and squared errors a quarter.
    costs = [
        sum(errors[i] for errors in sampled) * 4 ** (first[scheme].stored_bits / weights - scheme.bits)
        for i, scheme in enumerate(schemes)
    ]
    best = {kind: min((i for i, own in enumerate(kinds) if own == kind), key=costs.__getitem__) for kind in kinds}
    kept = {schemes[i]: number for number, i in enumerate(best.values())}
    return sorted((c for c in candidates if c.scheme.weight in kept), key=lambda c: kept[c.scheme.weight])


def grids_apart(schemes: Sequence[WeightScheme]) -> float:
    """Return how many schemes there are for each that is left when the best grid has been chosen."""
    return len(set(schemes)) / max(len({_without_grid(scheme) for scheme in schemes}), 1)


def _without_grid(scheme: WeightScheme) -> tuple[object, ...]:
    return tuple(getattr(scheme, field.name) for field in fields(scheme) if field.name != "grid")
