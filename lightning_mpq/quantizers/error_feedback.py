"""Error feedback: round a weight column by column and let later columns make up for the error of earlier ones.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, sections 3.2-3.3. It minimises tr(E M E^T), the mean squared
change of a layer's output, greedily; M is the moment of its inputs. What is computed is the equal form of J. Chee, Y.
Cai, V. Kuleshov, C. De Sa, "QuIP: 2-Bit Quantization of Large Language Models With Guarantees", NeurIPS 2023,
arXiv:2307.13304, which feeds on by the factor of M itself, where GPTQ takes that of its inverse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..grids.levels import Levels
from .damped_moment import OrderedMoment, type_to_factorise

_LEAF = 8
"""Columns that are rounded one by one. Of a longer run one half is rounded, its errors are fed to the other half as one
matrix product, and then that is rounded: matrix products of all sizes instead of a long row of thin ones."""


class Feedback(NamedTuple):
    """What rounding by error feedback gives.

    Attributes:
        codes: uint8 [G, N, C].
        loss: [G, N], e (M / unit + d I) e^T of each row's error e, where the unit is the mean of M's diagonal.
        error: [G, N], e M e^T.
        pending: [G, N, C], what each weight had become by the errors of earlier columns when it was rounded.
    """

    codes: Tensor
    loss: Tensor
    error: Tensor
    pending: Tensor


@dataclass(frozen=True)
class ErrorFeedback:
    """A moment, factorised once, by which any number of weights and schemes are rounded.

    Attributes:
        order: [G, C], the order in which columns are rounded, from the last to the first: see `OrderedMoment`.
        carried: [G, C, C], A, lower triangular with ones on its diagonal, and A D A^T = M / unit + d I in that order:
            an error of 1 in column i makes column j < i larger by A_ij before it is rounded.
        costs: [G, C], D: what a squared rounding error in each column costs when later columns make up for it.
        unit: [G, 1], the mean of M's diagonal; 1 where that is zero.
        damping: d.
    """

    order: Tensor
    carried: Tensor
    costs: Tensor
    unit: Tensor
    damping: float

    @classmethod
    def factorise(cls, moment: Tensor, damping: float = 0.01, dtype: torch.dtype = torch.float32) -> ErrorFeedback:
        """Factorise a moment.

        Args:
            moment: M, [G, C, C], symmetric and positive semidefinite, one for each convolution group. A group
                whose moment is zero is rounded to nearest.
            damping: d in units of the mean of M's diagonal. It keeps the factor finite where inputs are dead or
                linearly dependent, and updates small where M is known from few samples.
            dtype: Type of the factor; what it is computed in, `type_to_factorise` tells.

        Raises:
            NonFiniteError: If the moment holds NaN or infinite values.
            ValueError: If it is not positive semidefinite.
        """
        damped = OrderedMoment.of(moment.to(type_to_factorise(moment, damping, dtype))).damped(damping)
        diagonal = damped.root.diagonal(dim1=1, dim2=2).clone()
        carried, costs = damped.root.div_(diagonal[:, None]).to(dtype), diagonal.square().to(dtype)
        return cls(damped.order, carried, costs, damped.unit[:, 0].to(dtype), damped.damping)

    def column_costs(self) -> Tensor:
        """Return [G, C]: what is left of a squared rounding error in each column once later columns make up for it.

        That is the variance of the column's input given the inputs of all later columns, in units of the mean of M's
        diagonal.
        """
        return torch.empty_like(self.costs).scatter_(1, self.order, self.costs)

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

        given = columns_first(rows)[parts, self.order]
        pending = given.clone()
        at_column = self._by_column(levels.map(columns_first).ready(), block)
        codes = torch.empty_like(pending, dtype=torch.uint8)
        errors = torch.empty_like(pending)
        self._round_run(0, rows.shape[2], _Columns(given, pending, at_column, codes, errors))
        rounded_off = given.sub_(errors).sub_(pending)
        loss = rounded_off.square_().mul_(self.costs[:, :, None]).sum(1)
        error = (loss - self.damping * errors.square_().sum(1)).clamp_(min=0) * self.unit
        inverse = self.order.argsort(dim=1)
        as_given = [values[parts, inverse].transpose(1, 2) for values in (codes, pending)]
        return Feedback(as_given[0], loss, error, as_given[1])

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

    def _round_run(self, start: int, stop: int, work: _Columns) -> None:
        """Round columns ``start`` .. ``stop``, the last one first; those before ``start`` are left to the caller."""
        given, pending, levels, codes, errors = work
        if stop - start > _LEAF:
            middle = (start + stop) // 2
            self._round_run(middle, stop, work)
            carried = self.carried[:, middle:stop, start:middle].transpose(1, 2)
            pending[:, start:middle] += carried @ errors[:, middle:stop]
            self._round_run(start, middle, work)
            return
        for j in reversed(range(start, stop)):
            at_column = levels(j)
            code = at_column.nearest(pending[:, j])
            codes[:, j] = code
            error = errors[:, j]
            torch.sub(given[:, j], at_column.values(code), out=error)
            if j > start:
                pending[:, start:j].addcmul_(self.carried[:, j, start:j, None], error[:, None])


class _Columns(NamedTuple):
    """Weights on their way, in the order of columns.

    Attributes:
        given: [G, C, N], the weights.
        pending: [G, C, N], what is to be rounded; each column is final once it has been.
        levels: Column to its levels.
        codes: [G, C, N].
        errors: [G, C, N], weight less what it is rounded to, of each column that has been.
    """

    given: Tensor
    pending: Tensor
    levels: Callable[[int], Levels]
    codes: Tensor
    errors: Tensor
