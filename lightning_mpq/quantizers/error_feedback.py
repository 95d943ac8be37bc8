"""Error feedback: round a weight column by column and let later columns make up for the error of earlier ones.

E. Frantar, S. Ashkboos, T. Hoefler, D. Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", ICLR 2023, arXiv:2210.17323, sections 3.2-3.3. It minimises tr(E M E^T), the mean squared
change of a layer's output, greedily; M is the moment of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..grids.levels import Levels

_BLOCK = 32
"""Columns after which the pending updates of all later columns are made as one matrix product."""

_INDEFINITE = "The moment of the layer's inputs is not positive semidefinite; is it a mean of x x^T?"


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
        if not torch.isfinite(moment).all():
            raise NonFiniteError("The moment of the layer's inputs holds NaN or infinite values.")
        wide = moment.to(torch.float32 if moment.device.type == "mps" else torch.float64)
        diagonal = wide.diagonal(dim1=1, dim2=2)
        order = diagonal.argsort(dim=1, descending=True, stable=True)
        if (diagonal < 0).any():
            raise ValueError(_INDEFINITE)
        mean = diagonal.mean(1)
        unit = torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
        columns = order[:, None, :].expand_as(wide)
        ordered = wide.gather(2, columns).gather(1, columns.transpose(1, 2)) / unit
        identity = torch.eye(wide.shape[1], dtype=wide.dtype, device=wide.device)
        # M = V V^T with V upper triangular follows from the lower factor of M read backwards; then U = V^-1.
        for _ in range(4):
            lower, failed = torch.linalg.cholesky_ex((ordered + damping * identity).flip(1, 2))
            if not failed.any():
                break  # rounding errors alone can make a singular moment fail
            damping = max(10 * damping, 1e-8)
        else:
            raise ValueError(_INDEFINITE)
        upper = torch.linalg.solve_triangular(lower.flip(1, 2), identity.expand_as(wide), upper=True)
        return cls(order, upper.to(dtype))

    def column_costs(self) -> Tensor:
        """Return [G, C]: what is left of a squared rounding error in each column once later columns make up for it.

        That is the variance of the column's input given the inputs of all later columns, 1 / U_jj^2, in units of the
        mean of M's diagonal.
        """
        costs = torch.empty_like(self.upper[:, 0])
        return costs.scatter_(1, self.order, self.upper.diagonal(dim1=1, dim2=2).square().reciprocal())

    def round(self, rows: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
        """Round rows to codes, all rows and convolution groups side by side.

        Rows do not see each other, so that those of several schemes can be rounded in one call.

        Args:
            rows: [G, N, C], the weights.
            levels: At scales [G, N, 1], or [G, N, C] where a row has several. They are fixed beforehand.

        Returns:
            The codes, uint8 [G, N, C], and e (M / unit + d I) e^T of each row's error e, [G, N], where the unit is
            the mean of M's diagonal.
        """
        columns = self.order[:, None, :].expand_as(rows)
        pending = rows.gather(2, columns).transpose(1, 2).contiguous()  # [G, C, N]: a column lies together

        def in_order(values: Tensor) -> Tensor:
            return (values if values.shape[2] == 1 else values.gather(2, columns)).transpose(1, 2).contiguous()

        ordered = levels.map(in_order)
        codes = torch.empty_like(pending, dtype=torch.uint8)
        loss = torch.zeros_like(pending[:, 0])
        count = rows.shape[2]
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            errors = torch.empty_like(pending[:, start:stop])
            for j in range(start, stop):
                at_column = ordered.map(partial(_row, number=j))
                column, weights = pending[:, j], self.upper[:, j]
                code = at_column.nearest(column)
                codes[:, j] = code
                error = (column - at_column.values(code)) / weights[:, j, None]
                loss += error.square()
                errors[:, j - start] = error
                if j + 1 < stop:
                    pending[:, j + 1 : stop] -= weights[:, j + 1 : stop, None] * error[:, None]
            if stop < count:
                pending[:, stop:] -= self.upper[:, start:stop, stop:].transpose(1, 2) @ errors
        inverse = self.order.argsort(dim=1)[:, :, None].expand_as(codes)
        return codes.gather(1, inverse).transpose(1, 2), loss


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
