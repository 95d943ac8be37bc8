"""The constraint matrices of the convexification's semidefinite program, none of which is ever built."""

from __future__ import annotations

import numpy as np

from .difference_form import DifferenceForm
from .problem import Array

_STRIP = 192
"""Rows of the Newton matrix that are filled at once, which bounds the memory of the gathered entries."""


class SemidefiniteConstraints:
    """The matrices ``w sym(u v')`` of the program, and the three things a Newton step asks of them.

    Index 0 of Y is the constant 1, variable a has index a + 1. In order: ``X_aa - t_a = 0`` and ``X_ab = 0``
    for each block, ``Y_00 = 1``, and one budget row each. u is always a unit vector ``e_first``; v is
    ``e_second``, minus ``e_0`` for a diagonal one, or a row of A.
    """

    def __init__(self, form: DifferenceForm) -> None:
        """List the constraints of a form."""
        first, second = np.nonzero(np.triu(form.block[:, None] == form.block[None, :]))
        self.form = form
        self.row_count = len(form.limits)
        self.pair_count = len(first)
        self.first = np.concatenate([first + 1, [0], np.zeros(self.row_count, dtype=int)])
        self.second = np.concatenate([second + 1, [0]])
        self.is_diagonal = np.append(first == second, False)
        weight = np.where(first == second, 1.0, 2.0)
        self.weight = np.concatenate([weight, [1.0], np.ones(self.row_count)])
        self.right = np.concatenate([np.zeros(self.pair_count), [1.0], form.limits])

    def _times_v(self, matrix: Array) -> Array:
        """Return matrix @ V for the columns v of all constraints."""
        product = np.empty((len(matrix), len(self.first)))
        plain = len(self.second)
        product[:, :plain] = matrix[:, self.second]
        product[:, :plain] -= matrix[:, :1] * self.is_diagonal
        product[:, plain:] = matrix[:, 1:] @ self.form.rows.T
        return product

    def _v_times(self, product: Array, part: slice) -> Array:
        """Return V' @ product for some of the constraints."""
        plain = len(self.second)
        ends = range(*part.indices(len(self.first)))
        inside, beyond = slice(part.start, min(ends.stop, plain)), range(max(ends.start, plain), ends.stop)
        result = np.empty((len(ends), product.shape[1]))
        count = max(0, min(ends.stop, plain) - ends.start)
        if count:
            result[:count] = product[self.second[inside]]
            diagonal = np.flatnonzero(self.is_diagonal[inside])
            result[diagonal] -= product[0]
        for position in beyond:
            result[position - ends.start] = self.form.rows[position - plain] @ product[1:]
        return result

    def inner(self, matrix: Array) -> Array:
        """Return ``<A_i, matrix>`` for a symmetric matrix."""
        plain = len(self.second)
        values = np.empty(len(self.first))
        values[:plain] = matrix[self.first[:plain], self.second]
        values[:plain] -= self.is_diagonal * matrix[0, self.first[:plain]]
        values[plain:] = self.form.rows @ matrix[0, 1:]
        return values * self.weight

    def newton_matrix(self, Y: Array, W: Array) -> Array:
        """Return ``M_ij = <A_i, Y A_j W>`` for symmetric Y and W, its lower triangle at least."""
        YV, WV = self._times_v(Y), self._times_v(W)
        count = len(self.first)
        M = np.empty((count, count))
        for begin in range(0, count, _STRIP):
            strip, upto = slice(begin, min(begin + _STRIP, count)), min(begin + _STRIP, count)
            rows, columns = self.first[strip], self.first[:upto]
            part = self._v_times(YV[:, :upto], strip) * W[np.ix_(rows, columns)]
            part += self._v_times(WV[:, :upto], strip) * Y[np.ix_(rows, columns)]
            part += YV[:, strip][columns].T * WV[rows, :upto]
            part += YV[rows, :upto] * WV[:, strip][columns].T
            M[strip, :upto] = part * (self.weight[strip, None] * self.weight[:upto] / 4)
        return M

    def dual_matrix(self, duals: Array) -> Array:
        """Return ``sum_i duals_i A_i``, the matrix that Z lacks of the objective."""
        n = self.form.size
        result = np.zeros((n + 1, n + 1))
        pairs = slice(0, self.pair_count)
        a, b = self.first[pairs], self.second[pairs]
        diagonal = self.is_diagonal[pairs]
        result[a, b] = duals[pairs]
        result[b, a] = duals[pairs]
        result[0, a[diagonal]] = -duals[pairs][diagonal] / 2
        result[0, 1:] += duals[self.pair_count + 1 :] @ self.form.rows / 2
        result[1:, 0] = result[0, 1:]
        result[0, 0] = duals[self.pair_count]
        return result

    def dual_of(self, shift: Array, multipliers: Array) -> Array:
        """Return the duals that stand for P and lambda (with ``Y_00 = 1`` left at 0): ``A_i`` moves P/2 to Q/2."""
        a, b = self.first[: self.pair_count] - 1, self.second[: self.pair_count] - 1
        return np.concatenate([shift[a, b] / 2, [0.0], -multipliers])
