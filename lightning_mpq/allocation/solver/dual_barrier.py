r"""The barrier function whose maximisers are the best block convexifications; see `convexification` for P and lambda.

.. math:: F_\mu(P, \lambda) = g(P, \lambda) + \tfrac{\mu}{2} \log\det (Q - P) + \mu \sum_j \log \lambda_j

is concave. With K = (Q - P)^-1 and t = -K q, the minimiser of the convexified program over free t, its gradient is

.. math:: \nabla_{P_l} F = \tfrac12 (\operatorname{Diag} t_l - t_l t_l^T) - \tfrac{\mu}{2} K_{ll}, \qquad
          \nabla_\lambda F = A t - b + \mu / \lambda,

so that at the maximiser each t_l is a probability vector with covariance :math:`\mu K_{ll}`, and (t, mu K + t t')
solves the primal semidefinite program to within :math:`\mu (n / 2 + m)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg as sla

from .blocks import Blocks, BlockStructure
from .difference_form import DifferenceForm
from .problem import Array

_CHUNK = 1024
"""Rows of K that are mirrored at once."""


class DualBarrier:
    """A point (P, lambda) inside the dual cone, with K and t at hand.

    Memory: two matrices [n, n], Q and K.

    Attributes:
        hessian: Diagonal blocks of H = Q - P; off the blocks H is Q.
        multipliers: lambda, one a budget.
        K: H^-1, [n, n].
        point: t, [n].
    """

    def __init__(self, form: DifferenceForm, hessian: Blocks, multipliers: Array) -> None:
        """Note the point; `factorise` computes the rest.

        Args:
            form: The program, with at least one variable.
            hessian: Diagonal blocks of H.
            multipliers: lambda > 0.
        """
        self.form = form
        self.structure = BlockStructure(form.block)
        self.own = self.structure.gather(form.quadratic)
        self.hessian, self.multipliers = hessian, multipliers
        self.K = np.empty((form.size, form.size))
        self._diagonal = form.quadratic.diagonal()

    @property
    def weight(self) -> float:
        """How far apart the two programs are at the maximiser, in units of mu."""
        return self.form.size / 2 + len(self.multipliers)

    @property
    def operations(self) -> float:
        """Of a factorisation with its inverse."""
        return float(self.form.size) ** 3

    def slope(self) -> Array:
        """Return q = c + diag(P) / 2 + A' lambda."""
        shifted = self._diagonal - self.structure.diagonal(self.hessian)
        return self.form.linear + shifted / 2 + self.multipliers @ self.form.rows

    def factorise(self) -> bool:
        """Compute K and t; return whether H is positive definite, without which neither is of any use."""
        self.K[...] = self.form.quadratic
        self.structure.put(self.hessian, self.K)
        # A C-ordered matrix is the transpose of what LAPACK sees, so its lower triangle is our upper one.
        factor, failed = sla.lapack.dpotrf(self.K.T, lower=1, clean=0, overwrite_a=1)
        if failed:
            return False
        self.log_determinant = 2 * float(np.log(factor.diagonal()).sum())
        inverse, failed = sla.lapack.dpotri(factor, lower=1, overwrite_c=1)
        if failed or not np.isfinite(self.log_determinant):
            return False
        self.K = inverse.T
        for begin in range(0, len(self.K), _CHUNK):
            end = begin + _CHUNK
            corner = self.K[begin:end, begin:end]
            corner[...] = np.triu(corner) + np.triu(corner, 1).T
            self.K[begin:end, :begin] = self.K[:begin, begin:end].T
        self.point = -self.K @ self.slope()
        return True

    def value(self, mu: float) -> float:
        """Return F without its constant."""
        barrier = self.log_determinant / 2 + float(np.log(self.multipliers).sum())
        return float(self.slope() @ self.point / 2 - self.multipliers @ self.form.limits) + mu * barrier

    def bound(self) -> float:
        """Return the lower bound that (P, lambda) proves, whatever the rounding, of t and of the sums."""
        shifted = [mine - own for mine, own in zip(self.hessian, self.own, strict=True)]
        curved = self.form.quadratic @ self.point + self.structure.times(shifted, self.point)
        priced = self.form.constant - float(self.multipliers @ self.form.limits)
        found = priced + _tangent_bound(self.form, curved, self.slope(), self.point)
        return found - float(np.finfo(float).eps) * self._magnitude(curved)

    def _magnitude(self, curved: Array) -> float:
        """Return how large the terms are that a bound is the sum of: with large P and lambda they cancel nearly all."""
        form = self.form
        own = np.abs(self._diagonal) + np.abs(self.structure.diagonal(self.hessian))
        slopes = np.abs(curved) + np.abs(form.linear) + own / 2 + self.multipliers @ np.abs(form.rows)
        prices = abs(form.constant) + float(self.multipliers @ np.abs(form.limits))
        return prices + float(np.maximum.reduceat(slopes, form.start).sum() + np.abs(self.point) @ np.abs(curved) / 2)

    def gradient(self, mu: float) -> Array:
        """Return the gradient of F, packed, lambda last."""
        blocks = []
        for K, t in zip(self.structure.gather(self.K), self.structure.split(self.point), strict=True):
            block = -(t[:, :, None] * t[:, None, :] + mu * K) / 2
            places = np.arange(t.shape[1])
            block[:, places, places] += t / 2
            blocks.append(block)
        slack = self.form.rows @ self.point - self.form.limits + mu / self.multipliers
        return np.concatenate([self.structure.pack(blocks), slack])

    def conditional(self, bound: float) -> tuple[Array, Array]:
        r"""Return the lower bound if each variable, and if each block's reference, is chosen.

        Fixing block l at e_b and minimising over the rest freely raises the minimum by
        :math:`d^T K_{ll}^{-1} d / 2` with :math:`d = e_b - t_l`.
        """
        variables, references = [], []
        for K, t in zip(self.structure.gather(self.K), self.structure.split(self.point), strict=True):
            inverse = np.linalg.inv(K)
            pulled = np.matmul(inverse, t[:, :, None])[:, :, 0]
            at_reference = (pulled * t).sum(axis=1)
            variables.append((np.einsum("laa->la", inverse) / 2 - pulled + at_reference[:, None] / 2).ravel())
            references.append(at_reference / 2)
        return bound + np.concatenate(variables), bound + np.concatenate(references)

    def move(self, base: tuple[Sequence[Array], Array], direction: Array, length: float) -> bool:
        """Go from a base point along a packed direction; return whether that is inside of the cone."""
        count = len(direction) - len(self.multipliers)
        hessian, multipliers = base
        D = self.structure.unpack(direction[:count])
        self.multipliers = multipliers + length * direction[count:]
        self.hessian = [block - length * step for block, step in zip(hessian, D, strict=True)]
        return bool(np.all(self.multipliers > 0)) and self.factorise()


def _tangent_bound(form: DifferenceForm, curved: Array, q: Array, point: Array) -> float:
    r"""Return what of a lower bound depends on the point t where the convex program is linearised.

    With H = Q - P positive semidefinite the tangent at any t, minimised over the simplices, is a bound:

    .. math:: \text{const} - \lambda^T b - \tfrac12 t^T H t + \sum_l \min\big(0, \min_{i \in l} r_i\big),
              \qquad r = H t + q.

    At the minimiser t = -H^-1 q the residual r is zero and this is g(P, lambda); an inexact t, from an
    ill-conditioned H, only lowers it, so that rounding cannot flatter the bound.

    Args:
        form: The program.
        curved: H t.
        q: Its linear term, P and prices included.
        point: t.

    Returns:
        The last two terms.
    """
    return float(np.minimum(0.0, np.minimum.reduceat(curved + q, form.start)).sum() - point @ curved / 2)
