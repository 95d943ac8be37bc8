"""Error feedback: round a weight column by column and let later columns make up for the error of earlier ones.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, sections 3.2-3.3. It minimises tr(E M E^T), the mean squared
change of a layer's output, greedily; M is the moment of its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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

    def round(self, rows: Tensor, levels: Levels, block: int | None = None) -> Feedback:
        """Round rows to codes, all rows and convolution groups side by side.

        Rows do not see each other, so that those of several schemes can be rounded in one call.

        Args:
            rows: [G, N, C], the weights.
            levels: At scales [G, N, 1], or [G, N, blocks]. They are fixed beforehand.
            block: Columns of one block; None where all columns of a row share one scale.
        """
        parts = torch.arange(len(rows), device=rows.device)[:, None]

        def columns_first(values: Tensor) -> Tensor:
            """[G, N, C] to [G, C, N], so that a column lies together."""
            return values.transpose(1, 2).contiguous()

        pending = columns_first(rows)[parts, self.order]
        at_column = self._by_column(levels.map(columns_first).ready(), block)
        codes = torch.empty_like(pending, dtype=torch.uint8)
        errors = torch.empty_like(pending)
        self._round_run(0, rows.shape[2], pending, at_column, codes, errors)
        loss = errors.square_().sum(1)
        inverse = self.order.argsort(dim=1)
        as_given = [values[parts, inverse].transpose(1, 2) for values in (codes, pending)]
        return Feedback(as_given[0], loss, as_given[1])

    def _by_column(self, levels: Levels, block: int | None) -> Callable[[int], Levels]:
        """Return the place of a column in the order to its levels [G, N], of levels [G, blocks, N]."""
        if block is None:
            shared = levels.map(lambda values: values[:, 0])
            return lambda number: shared
        parts, blocks = torch.arange(len(self.order), device=self.order.device), self.order // block
        alone = blocks[0].tolist() if len(blocks) == 1 else None  # which spares a copy, and a wait for a GPU

        def at(number: int) -> Levels:
            def of_block(values: Tensor) -> Tensor:
                if values.shape[1] == 1:
                    return values[:, 0]
                return values[:, alone[number]] if alone is not None else values[parts, blocks[:, number]]

            return levels.map(of_block)

        return at

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


def output_error(errors: Tensor, moment: Tensor) -> Tensor:
    """Return e M e^T of each row e, [G, N], from errors [G, N, C] and M [G, C, C].

    Example:
        >>> output_error(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[7.]])
    """
    return ((errors @ moment) * errors).sum(2)
