"""Rounding a layer's weight by the error of its output: one factorisation for all schemes, the best codes for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.registry import grid_named
from ..schemes import WeightScheme
from .clip_search import least_error, trial_scales
from .error_feedback import ErrorFeedback
from .feedback_search import Searched, search_with_feedback
from .nearest import checked_rows, finite_rows
from .nearest_search import nearest_error, search_nearest
from .quantized_rows import QuantizedRows
from .some_rows import RowsSoFar, some_rows


class RoundedRows(NamedTuple):
    """A rounded weight and what it does to the layer's output.

    Attributes:
        quantized: Codes, scales and scheme.
        error: tr(E M E^T): the mean squared change of the output, summed over output channels.
    """

    quantized: QuantizedRows
    error: float


class RowRounding:
    """Rounds weights by the moment of their inputs, which is factorised when it is first needed, once for all schemes.

    Attributes:
        moment: M, [G, C, C], or [G, C] if it is a diagonal.
        damping: See `ErrorFeedback.factorise`.
    """

    def __init__(self, moment: Tensor, damping: float = 0.01) -> None:
        """See `round_rows`."""
        self.moment, self.damping = _with_inputs_everywhere(moment), damping
        self._factor: ErrorFeedback | None = None

    def round(
        self,
        rows: Tensor,
        schemes: Sequence[WeightScheme],
        row_weights: Tensor | None = None,
        aim: Callable[[Tensor], Tensor] | None = None,
    ) -> list[RoundedRows]:
        """Round one weight to several schemes; see `round_rows`.

        Args:
            rows: As there.
            schemes: As there.
            row_weights: As there.
            aim: Called with some rows, in float32 or wider, to return what is rounded in their place.
        """
        given, costs = self._checked(rows, row_weights)
        found: dict[int, RoundedRows] = {}
        for kind in dict.fromkeys(map(_side_by_side_with, schemes)):
            numbers = [number for number, scheme in enumerate(schemes) if _side_by_side_with(scheme) == kind]
            chosen = [schemes[number] for number in numbers]
            found |= dict(zip(numbers, self._round_alike(given, chosen, costs, aim), strict=True))
        return [found[number] for number in range(len(schemes))]

    def errors(self, rows: Tensor, schemes: Sequence[WeightScheme], row_weights: Tensor | None = None) -> list[float]:
        """Return about what `round` would return as errors: enough to tell which of several grids is the best.

        Where that took error feedback it is a bound: the error of the weights themselves, rounded to nearest in the
        range that suits each scale best, at what each column costs (`ErrorFeedback.column_costs`).
        """
        given, weights = self._checked(rows, row_weights)
        wide, found = given.to(weights.dtype), []
        for scheme in schemes:
            if scheme.clip == "moment" and self._feeds_on(scheme):
                unit = self.moment.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).to(wide.dtype)
                costs = unit * self._factorised(wide.dtype).column_costs()
                found.append(least_error(wide, costs, scheme, trial_scales(wide, scheme), weights))
            else:
                found.append(self._round_alike(wide, [scheme], weights)[0].error)
        return found

    def _checked(self, rows: Tensor, row_weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the rows, and how much each counts in the type to compute in."""
        given = checked_rows(rows)
        parts, columns = len(self.moment), self.moment.shape[-1]
        shape = (parts, columns, columns)[: self.moment.dim()]
        if self.moment.shape != shape or given.shape[1] != columns or len(given) % parts:
            raise ValueError(
                f"Expected a moment of shape [groups, {given.shape[1]}, {given.shape[1]}] for {list(given.shape)} "
                f"weights and groups that divide the rows, got {list(self.moment.shape)}."
            )
        weights = given.new_ones(len(given)) if row_weights is None else row_weights.to(given.device)
        return given, weights.to(torch.promote_types(given.dtype, torch.float32))

    def _feeds_on(self, scheme: WeightScheme) -> bool:
        """Tell whether errors are fed on: not where inputs do not correlate."""
        return scheme.rounding == "second_order" and self.moment.dim() == 3

    def _factorised(self, dtype: torch.dtype) -> ErrorFeedback:
        if self._factor is None:
            self._factor = ErrorFeedback.factorise(self.moment, self.damping, dtype)
        return self._factor

    def _round_alike(
        self,
        rows: Tensor,
        schemes: Sequence[WeightScheme],
        row_weights: Tensor,
        aim: Callable[[Tensor], Tensor] | None = None,
    ) -> list[RoundedRows]:
        """Round to schemes that can be rounded side by side."""
        moment, parts = self.moment.to(row_weights.dtype), len(self.moment)
        search = self._with_feedback if self._feeds_on(schemes[0]) else _to_nearest
        gathered = [RowsSoFar(rows, parts) for _ in schemes]
        for chunk, weights in some_rows(rows, row_weights, parts, schemes):
            aimed = chunk if aim is None else finite_rows(aim(chunk))
            for own, found in zip(gathered, search(aimed, moment, schemes, weights), strict=True):
                own.add(*found)
        return [_rounded(*pair, row_weights) for pair in zip(schemes, gathered, strict=True)]

    def _with_feedback(
        self, rows: Tensor, moment: Tensor, schemes: Sequence[WeightScheme], row_weights: Tensor
    ) -> Iterator[Searched]:
        searched = search_with_feedback(rows, self._factorised(rows.dtype), schemes, row_weights)
        for scheme, found in zip(schemes, searched, strict=True):
            yield _better_codes(rows, moment, scheme, found)


def _to_nearest(
    rows: Tensor, moment: Tensor, schemes: Sequence[WeightScheme], row_weights: Tensor
) -> Iterator[Searched]:
    for scheme in schemes:
        scales = search_nearest(rows, moment, scheme, row_weights)
        yield Searched(*nearest_error(rows, moment, scheme, scales), scales)


def _better_codes(rows: Tensor, moment: Tensor, scheme: WeightScheme, found: Searched) -> Searched:
    """Return what was found with the nearest codes in the place of those found, in rows where they are better.

    Error feedback is greedy, and may lose.
    """
    nearest_codes, nearest_errors = nearest_error(rows, moment, scheme, found.scales)
    better = found.error < nearest_errors
    codes = torch.where(better[:, None], found.codes, nearest_codes)
    return Searched(codes, torch.where(better, found.error, nearest_errors), found.scales)


def round_rows(
    rows: Tensor,
    moment: Tensor,
    schemes: Sequence[WeightScheme],
    row_weights: Tensor | None = None,
    damping: float = 0.01,
) -> list[RoundedRows]:
    """Round one weight to several schemes by the moment of its inputs.

    The moment is factorised once, and the trials of all schemes are rounded side by side. With
    ``rounding="second_order"`` no row comes out worse than rounded to nearest at the same scales. Scales are fixed
    before the codes; those of blocks of columns are chosen by a bound that neglects how blocks interact.

    Args:
        rows: [R, C], the weight; G consecutive parts of its rows belong to G convolution groups.
        moment: M, [G, C, C], the mean of x x^T over the inputs of each convolution group, or [G, C] if it is a
            diagonal; where it is zero, the weight error counts instead.
        schemes: Any schemes, also those that need no inputs.
        row_weights: [R], how much the error of each row counts where rows share a scale; default: all alike.
        damping: See `ErrorFeedback.factorise`.

    Raises:
        NonFiniteError: If a weight or the moment is NaN or infinite.
        ValueError: If shapes do not fit, or a scale does not fit the scale type.

    Example:
        >>> weight, inputs = torch.randn(4, 8), torch.randn(100, 8) @ torch.randn(8, 8)
        >>> schemes = [WeightScheme(3), WeightScheme(3, rounding="second_order", clip="moment")]
        >>> nearest, second_order = round_rows(weight, (inputs.T @ inputs / 100)[None], schemes)
        >>> second_order.error < nearest.error
        True
    """
    return RowRounding(moment, damping).round(rows, schemes, row_weights)


def _side_by_side_with(scheme: WeightScheme) -> tuple[bool, object, str]:
    """Return what schemes have in common if and only if their trials can be rounded side by side."""
    shared = scheme.granularity if scheme.granularity in ("tensor", "channel") else "blocks"
    return scheme.rounding == "second_order", shared, grid_named(scheme.grid).family


def _with_inputs_everywhere(moment: Tensor) -> Tensor:
    """Give parts whose inputs are all zero some that are equal and tiny, so that the size of errors decides there."""
    is_matrix = moment.dim() == 3
    diagonal = moment.diagonal(dim1=1, dim2=2) if is_matrix else moment
    if diagonal.any(1).all():
        return moment
    tiny = 1e-6 * diagonal.mean() if diagonal.any() else torch.ones_like(diagonal[0, 0])
    same = tiny.expand(moment.shape[-1])
    return torch.where(diagonal.any(1).view(-1, *[1] * (moment.dim() - 1)), moment, same.diag() if is_matrix else same)


def _rounded(scheme: WeightScheme, gathered: RowsSoFar, row_weights: Tensor) -> RoundedRows:
    scales, errors = gathered.scales(), gathered.errors()
    zero_point = None if scales.zero_point is None else scales.zero_point[0]
    total = (errors * row_weights).sum(dtype=torch.float64 if errors.device.type != "mps" else None)
    return RoundedRows(QuantizedRows(gathered.codes(), scales.scale[0], zero_point, scheme), float(total))
