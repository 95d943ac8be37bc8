"""A moment with damping on its diagonal, factorised in the order in which error feedback rounds columns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NonFiniteError

_INDEFINITE = "The moment of the layer's inputs is not positive semidefinite; is it a mean of x x^T?"


@dataclass(frozen=True)
class OrderedMoment:
    """M with its columns in the order in which error feedback rounds them, read backwards: ready for any damping.

    Attributes:
        order: [G, C]: columns with the largest inputs first, while there are still columns left to make up for them.
        backwards: M / unit, from the last column in that order to the first, [G, C, C].
        unit: [G, 1, 1], the mean of M's diagonal; 1 where that is zero.
    """

    order: Tensor
    backwards: Tensor
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
        if not torch.isfinite(moment).all():
            raise NonFiniteError("The moment of the layer's inputs holds NaN or infinite values.")
        diagonal = moment.diagonal(dim1=1, dim2=2)
        order = diagonal.argsort(dim=1, descending=True, stable=True)
        if (diagonal < 0).any():
            raise ValueError(_INDEFINITE)
        mean = diagonal.mean(1)
        unit = torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
        columns = order.flip(1)[:, None, :].expand_as(moment)
        backwards = moment.gather(2, columns).gather(1, columns.transpose(1, 2))
        return cls(order, backwards.div_(unit), unit)

    def damped(self, damping: float) -> DampedMoment:
        """Factorise it with damping on its diagonal; one that rounding errors make singular gets more.

        Args:
            damping: d in units of the mean of M's diagonal.

        Raises:
            ValueError: If it is not positive semidefinite.
        """
        for _ in range(4):
            damped = self.backwards.clone()
            damped.diagonal(dim1=1, dim2=2).add_(damping)
            lower, failed = torch.linalg.cholesky_ex(damped)
            del damped
            if not failed.any():
                # The lower factor of the matrix read backwards is V read backwards.
                return DampedMoment(self.order, lower.flip(1, 2), self.unit)
            damping = max(10 * damping, 1e-8)
        raise ValueError(_INDEFINITE)


@dataclass(frozen=True)
class DampedMoment:
    """V, upper triangular, with M / unit + d I = V V^T for columns in the order of an `OrderedMoment`.

    Attributes:
        order: As there.
        root: V, [G, C, C].
        unit: As there.
    """

    order: Tensor
    root: Tensor
    unit: Tensor

    def inverse_root(self) -> Tensor:
        """Return U = V^-1, [G, C, C], in the order of columns."""
        identity = torch.eye(self.root.shape[1], dtype=self.root.dtype, device=self.root.device)
        return torch.linalg.solve_triangular(self.root, identity.expand_as(self.root), upper=True)

    def solve(self, rows: Tensor) -> Tensor:
        """Return B (M + d unit I)^-1 for rows B, [G, N, C]."""
        half = torch.linalg.solve_triangular(self.root.mT, self._in_order(rows), upper=False, left=False)
        found = torch.linalg.solve_triangular(self.root, half, upper=True, left=False) / self.unit
        return self._as_given(found)

    def fed_on(self, errors: Tensor) -> Tensor:
        """Return what rounding errors make of a row under error feedback, [G, N, C].

        An error of 1 in column j, in their order, changes each later column by U_jk / U_jj.

        Args:
            errors: [G, N, C], by how much each column is rounded off when its turn comes.
        """
        units = self._in_order(errors) * self.root.diagonal(dim1=1, dim2=2)[:, None]
        return self._as_given(torch.linalg.solve_triangular(self.root, units, upper=True, left=False))

    def _in_order(self, rows: Tensor) -> Tensor:
        return rows.to(self.root.dtype).gather(2, self.order[:, None].expand_as(rows))

    def _as_given(self, rows: Tensor) -> Tensor:
        return torch.empty_like(rows).scatter_(2, self.order[:, None].expand_as(rows), rows)
