"""A moment with damping on its diagonal, factorised in the order in which error feedback rounds columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError
from ..tools.finite import all_finite
from .output_error import output_error

_INDEFINITE = "The moment of the layer's inputs is not positive semidefinite; is it a mean of x x^T?"
_SINGLE = 2**14
"""Condition number up to which a moment is factorised in single precision: it then tells rows to a thousandth at worst,
where the samples that the moment comes from tell them to some percent."""


def type_to_factorise(moment: Tensor, damping: float, like: torch.dtype) -> torch.dtype:
    """Return the type in which a damped moment is factorised.

    Single precision takes half of the time and memory. Its eigenvalues are the damping at least and their sum, the
    number of columns, at most, in units of the mean of the diagonal.

    Args:
        moment: [G, C, C].
        damping: In units of the mean of its diagonal.
        like: The type that what is computed has in the end.
    """
    single = like != torch.float64 and moment.shape[-1] <= _SINGLE * damping
    return torch.float32 if single or moment.device.type == "mps" else torch.float64


@dataclass(frozen=True)
class OrderedMoment:
    """M with its columns in the order in which error feedback rounds them, from the last to the first.

    Attributes:
        order: [G, C]: columns with the largest inputs last: they are rounded first, while there are still columns left
            to make up for them.
        matrix: M / unit in that order, [G, C, C].
        unit: [G, 1, 1], the mean of M's diagonal; 1 where that is zero.
    """

    order: Tensor
    matrix: Tensor
    unit: Tensor

    @classmethod
    def of(cls, moment: Tensor) -> OrderedMoment:
        """Order the columns of a moment.

        Args:
            moment: M, [G, C, C], symmetric and positive semidefinite, one for each convolution group, in the type to
                compute in.

        Raises:
            NonFiniteError: If the moment holds NaN or infinite values.
            ValueError: If its diagonal has negative values.
        """
        if not all_finite(moment):
            raise NonFiniteError("The moment of the layer's inputs holds NaN or infinite values.")
        diagonal = moment.diagonal(dim1=1, dim2=2)
        order = diagonal.argsort(dim=1, descending=True, stable=True).flip(1)
        if (diagonal < 0).any():
            raise ValueError(_INDEFINITE)
        mean = diagonal.mean(1)
        unit = torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
        columns = order[:, None, :].expand_as(moment)
        matrix = moment.gather(2, columns).gather(1, columns.transpose(1, 2))
        return cls(order, matrix.div_(unit), unit)

    def cost(self, rows: Tensor) -> Tensor:
        """Return b M b^T of each row of B, [G, N], from [G, N, C]."""
        return output_error(_in_order(rows.to(self.matrix.dtype), self.order), self.matrix) * self.unit[:, 0]

    def trace(self) -> Tensor:
        """Return the sum of M's diagonal over all groups."""
        return (self.matrix.diagonal(dim1=1, dim2=2).sum(1) * self.unit[:, 0, 0]).sum()

    def damped(self, damping: float) -> DampedMoment:
        """Factorise it with damping on its diagonal; one that rounding errors make singular gets more.

        Args:
            damping: d in units of the mean of M's diagonal.

        Raises:
            ValueError: If it is not positive semidefinite.
        """
        diagonal = self.matrix.diagonal(dim1=1, dim2=2)
        given = diagonal.clone()
        for _ in range(4):
            diagonal.add_(damping)  # in place, as a copy would be another matrix to hold
            root, failed = torch.linalg.cholesky_ex(self.matrix)
            diagonal.copy_(given)
            if not failed.any():
                return DampedMoment(self.order, root, self.unit, damping)
            damping = max(10 * damping, 1e-8)
        raise ValueError(_INDEFINITE)


@dataclass(frozen=True)
class DampedMoment:
    """L, lower triangular, with M / unit + d I = L L^T for columns in the order of an `OrderedMoment`.

    Attributes:
        order: As there.
        root: L, [G, C, C].
        unit: As there.
        damping: d.
    """

    order: Tensor
    root: Tensor
    unit: Tensor
    damping: float

    def solve(self, rows: Tensor) -> Tensor:
        """Return B (M + d unit I)^-1 for rows B, [G, N, C]."""
        half = torch.linalg.solve_triangular(
            self.root.mT, _in_order(rows.to(self.root.dtype), self.order), upper=True, left=False
        )
        found = torch.linalg.solve_triangular(self.root, half, upper=False, left=False) / self.unit
        return self._as_given(found)

    def fed_on(self, errors: Tensor) -> Tensor:
        """Return what rounding errors make of a row under error feedback, [G, N, C]: see `ErrorFeedback`.

        Args:
            errors: [G, N, C], by how much each column is rounded off when its turn comes.
        """
        units = _in_order(errors.to(self.root.dtype), self.order) * self.root.diagonal(dim1=1, dim2=2)[:, None]
        return self._as_given(torch.linalg.solve_triangular(self.root, units, upper=False, left=False))

    def _as_given(self, rows: Tensor) -> Tensor:
        return torch.empty_like(rows).scatter_(2, self.order[:, None].expand_as(rows), rows)


def _in_order(rows: Tensor, order: Tensor) -> Tensor:
    return rows.gather(2, order[:, None].expand_as(rows))
