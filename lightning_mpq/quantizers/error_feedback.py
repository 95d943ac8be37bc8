"""Error feedback: round a weight column by column and let later columns make up for the error of earlier ones.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, sections 3.2-3.3. It minimises tr(E M E^T), the mean squared
change of a layer's output, greedily; M is the moment of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.levels import Levels
from .damped_moment import OrderedMoment

_LEAF = 8
"""Columns that are rounded one by one. Of a longer run the first half is rounded, its errors are fed to the second half
as one matrix product, and then that is rounded: matrix products of all sizes instead of a long row of thin ones."""


class Feedback(NamedTuple):
    """What rounding by error feedback gives.

    Attributes:
        codes: uint8 [G, N, C].
        loss: [G, N], e (M / unit + d I) e^T of each row's error e, where the unit is the mean of M's diagonal.
        pending: [G, N, C], what each weight had become by the errors of earlier columns when it was rounded.
    """

    codes: Tensor
    loss: Tensor
    pending: Tensor


@dataclass(frozen=True)
class ErrorFeedback:
    """A moment, factorised once, by which any number of weights and schemes are rounded.

    Attributes:
        order: [G, C], the order in which columns are rounded: those with the largest inputs first, while there
            are still columns left to make up for them.
        upper: [G, C, C], U with U^T U = (M + d I)^-1 in that order; row j of it, divided by its diagonal, is
            how much each later column has to change for a unit error in column j.
    """

    order: Tensor
    upper: Tensor

    @classmethod
    def factorise(cls, moment: Tensor, damping: float = 0.01, dtype: torch.dtype = torch.float32) -> ErrorFeedback:
        """Factorise a moment.

        Args:
            moment: M, [G, C, C], symmetric and positive semidefinite, one for each convolution group. A group
                whose moment is zero is rounded to nearest.
            damping: d in units of the mean of M's diagonal. It keeps the factor finite where inputs are dead or
                linearly dependent, and updates small where M is known from few samples.
            dtype: Type of the factor; it is computed in float64 where the device has it.

        Raises:
            NonFiniteError: If the moment holds NaN or infinite values.
            ValueError: If it is not positive semidefinite.
        """
        wide = moment.to(torch.float32 if moment.device.type == "mps" else torch.float64)
        damped = OrderedMoment.of(wide).damped(damping)
        return cls(damped.order, damped.inverse_root().to(dtype))

    def column_costs(self) -> Tensor:
        """Return [G, C]: what is left of a squared rounding error in each column once later columns make up for it.

        That is the variance of the column's input given the inputs of all later columns, 1 / U_jj^2, in units of the
        mean of M's diagonal.
        """
        costs = torch.empty_like(self.upper[:, 0])
        return costs.scatter_(1, self.order, self.upper.diagonal(dim1=1, dim2=2).square().reciprocal())

    def round(self, rows: Tensor, levels: Levels) -> Feedback:
        """Round rows to codes, all rows and convolution groups side by side.

        Rows do not see each other, so that those of several schemes can be rounded in one call.

        Args:
            rows: [G, N, C], the weights.
            levels: At scales [G, N, 1], or [G, N, C] where a row has several. They are fixed beforehand.
        """
        parts = torch.arange(len(rows), device=rows.device)[:, None]

        def in_order(values: Tensor) -> Tensor:
            """[G, N, C] to [G, C, N], so that a column lies together; [G, N, 1] to [G, 1, N]."""
            values = values.transpose(1, 2).contiguous()
            return values if values.shape[1] == 1 else values[parts, self.order]

        pending, ordered = in_order(rows), levels.map(in_order)
        codes = torch.empty_like(pending, dtype=torch.uint8)
        errors = torch.empty_like(pending)
        self._round_run(0, rows.shape[2], pending, _by_column(ordered), codes, errors)
        loss = errors.square_().sum(1)
        inverse = self.order.argsort(dim=1)
        as_given = [values[parts, inverse].transpose(1, 2) for values in (codes, pending)]
        return Feedback(as_given[0], loss, as_given[1])

    def _round_run(
        self,
        start: int,
        stop: int,
        pending: Tensor,
        levels: Callable[[int], Levels],
        codes: Tensor,
        errors: Tensor,
    ) -> None:
        """Round columns ``start`` .. ``stop``, in place; pending values beyond ``stop`` are left to the caller.

        Args:
            start: The first column.
            stop: The one after the last.
            pending: [G, C, N], what is to be rounded; each column is final once it has been.
            levels: Column to its levels, in the order of columns.
            codes: [G, C, N].
            errors: [G, C, N], the rounding error of each column over U's diagonal.
        """
        if stop - start > _LEAF:
            middle = (start + stop) // 2
            self._round_run(start, middle, pending, levels, codes, errors)
            fed_on = self.upper[:, start:middle, middle:stop].transpose(1, 2)
            pending[:, middle:stop] -= fed_on @ errors[:, start:middle]
            self._round_run(middle, stop, pending, levels, codes, errors)
            return
        for j in range(start, stop):
            at_column = levels(j)
            column, weights = pending[:, j], self.upper[:, j]
            code = at_column.nearest(column)
            codes[:, j] = code
            error = errors[:, j]
            torch.sub(column, at_column.values(code), out=error)
            error /= weights[:, j, None]
            if j + 1 < stop:
                pending[:, j + 1 : stop].addcmul_(weights[:, j + 1 : stop, None], error[:, None], value=-1)


def _by_column(levels: Levels) -> Callable[[int], Levels]:
    """Return column to levels [G, N], of levels [G, C, N] or, where all columns share one, [G, 1, N]."""
    if levels.step.shape[1] == 1:
        shared = levels.map(lambda values: values[:, 0])
        return lambda number: shared
    return lambda number: levels.map(partial(_row, number=number))


def _row(values: Tensor, number: int) -> Tensor:
    """Return row ``number`` of [G, C, N], or the only one of [G, 1, N]."""
    return values[:, number if values.shape[1] > 1 else 0]


def output_error(errors: Tensor, moment: Tensor) -> Tensor:
    """Return e M e^T of each row e, [G, N], from errors [G, N, C] and M [G, C, C].

    Example:
        >>> output_error(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[7.]])
    """
    return ((errors @ moment) * errors).sum(2)
