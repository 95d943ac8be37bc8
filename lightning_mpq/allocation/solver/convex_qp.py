r"""A convex quadratic program over a product of simplices, with a bound that holds at every iterate.

.. math:: \min_t\ \tfrac12 t^T H t + c^T t \quad\text{s.t.}\quad
          t \ge 0,\ \ \sum_{i \in l} t_i \le 1\ \text{(each block)},\ \ A t \le b

by Mehrotra's predictor-corrector method (SIAM J. Optim. 2, 1992). H is convex, so for any t and
:math:`\lambda \ge 0` the tangent at t with the budgets priced,

.. math:: -\tfrac12 t^T H t - \lambda^T b + \sum_l \min\big(0, \min_{i \in l} w_i\big),
          \qquad w = H t + c + A^T \lambda,

is a lower bound, and the reduced cost of each candidate adds to it if that candidate is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .problem import Array, Indices


@dataclass(frozen=True, eq=False)
class QpSolution:
    """A relaxed solution and what it proves.

    Attributes:
        point: t, shape [n].
        bound: Lower bound of the program.
        reduced: What taking each variable adds to the bound, shape [n].
        reference_reduced: What taking each block's reference (t = 0 in the block) adds.
        multipliers: lambda, one a budget.
    """

    point: Array
    bound: float
    reduced: Array
    reference_reduced: Array
    multipliers: Array


def solve_convex_qp(
    hessian: Array,
    linear: Array,
    block: Indices,
    rows: Array,
    limits: Array,
    *,
    tolerance: float,
    out_of_time: Callable[[], bool] = lambda: False,
    max_steps: int = 40,
) -> QpSolution:
    """Solve the program to an absolute tolerance.

    Args:
        hessian: H, shape [n, n], positive semidefinite.
        linear: c, shape [n].
        block: Block of each variable, ascending from 0, shape [n].
        rows: A, shape [m, n].
        limits: b, shape [m].
        tolerance: Stop when value minus bound is at most this.
        out_of_time: Asked once a step.
        max_steps: Newton steps at most.
    """
    n, blocks = len(linear), int(block[-1]) + 1
    starts = np.searchsorted(block, np.arange(blocks))
    right = np.concatenate([np.ones(blocks), limits])
    scale = float(np.abs(linear).mean()) + 1e-300
    t = (1 / (np.bincount(block) + 1.0))[block]
    state = _State(hessian, linear, block, starts, rows, right)
    state.t = t
    state.s = np.maximum(right - state.times(t), 1e-2 * np.concatenate([np.ones(blocks), np.abs(rows) @ t + 1e-300]))
    state.z = np.full(n, scale)
    state.y = scale / np.concatenate([np.ones(blocks), np.abs(rows).max(axis=1, initial=1e-300)])
    best = QpSolution(t, -np.inf, np.zeros(n), np.zeros(blocks), np.zeros(len(limits)))
    for _ in range(max_steps):
        t, multipliers = state.t, state.y[blocks:]
        gradient = hessian @ t + linear
        priced = gradient + multipliers @ rows
        lowest = np.minimum(0.0, np.minimum.reduceat(priced, starts))
        bound = float((t @ linear - t @ gradient) / 2 - multipliers @ limits + lowest.sum())
        if bound > best.bound:
            best = QpSolution(t, bound, priced - lowest[block], -lowest, multipliers)
        value = float(t @ (gradient + linear) / 2)
        near = np.abs(state.times(t) + state.s - right).max() <= 1e-6 * max(1.0, float(np.abs(right).max()))
        if (near and value - best.bound <= tolerance) or out_of_time() or not state.step(gradient):
            break
    return best


class _State:
    """Primal t and slacks s, duals z of t >= 0 and y of the rows, and how one step changes them."""

    t: Array
    s: Array
    z: Array
    y: Array

    def __init__(
        self, hessian: Array, linear: Array, block: Indices, starts: Indices, rows: Array, right: Array
    ) -> None:
        self.hessian, self.linear, self.block, self.starts, self.rows, self.right = (
            hessian,
            linear,
            block,
            starts,
            rows,
            right,
        )
        self.same = block[:, None] == block[None, :]

    def times(self, point: Array) -> Array:
        """Return the left-hand sides of all rows: block sums, then budgets."""
        return np.concatenate([np.add.reduceat(point, self.starts), self.rows @ point])

    def transposed(self, duals: Array) -> Array:
        """Return what duals of all rows add to each variable's gradient."""
        blocks = len(self.starts)
        back: Array = duals[:blocks][self.block] + duals[blocks:] @ self.rows
        return back

    def step(self, gradient: Array) -> bool:
        """Take one predictor-corrector step; return whether that was possible."""
        n, blocks = len(self.t), len(self.starts)
        weight = self.y / self.s
        H = self.hessian + np.where(self.same, weight[:blocks][self.block], 0.0)
        H[np.arange(n), np.arange(n)] += self.z / self.t
        H += (self.rows.T * weight[blocks:]) @ self.rows
        factor, failed = sla.lapack.dpotrf(H.T, lower=0, overwrite_a=1)
        if failed:
            return False
        count = n + len(self.right)
        mu = float(self.t @ self.z + self.s @ self.y) / count
        change = self._direction(factor, gradient, -self.t * self.z, -self.s * self.y)
        dt, ds, dz, dy = change
        length = self._length(change)
        after = (self.t + length * dt) @ (self.z + length * dz) + (self.s + length * ds) @ (self.y + length * dy)
        target = mu * (max(float(after) / count, 0.0) / mu) ** 3
        change = self._direction(
            factor, gradient, target - self.t * self.z - dt * dz, target - self.s * self.y - ds * dy
        )
        length = 0.99 * self._length(change)
        self.t, self.s, self.z, self.y = (
            state + length * step for state, step in zip((self.t, self.s, self.z, self.y), change, strict=True)
        )
        return True

    def _direction(
        self, factor: Array, gradient: Array, complement_t: Array, complement_s: Array
    ) -> tuple[Array, Array, Array, Array]:
        """Solve the Newton system for given right-hand sides of the complementarity equations."""
        primal = self.times(self.t) + self.s - self.right
        dual = gradient + self.transposed(self.y) - self.z
        force = -dual + complement_t / self.t - self.transposed((complement_s + self.y * primal) / self.s)
        dt = sla.lapack.dpotrs(factor, force, lower=0)[0]
        ds = -primal - self.times(dt)
        return dt, ds, (complement_t - self.z * dt) / self.t, (complement_s - self.y * ds) / self.s

    def _length(self, change: tuple[Array, Array, Array, Array]) -> float:
        """Return the largest step, at most 1, that keeps all positive."""
        pairs = zip((self.t, self.s, self.z, self.y), change, strict=True)
        return min(_inside(state, step) for state, step in pairs)


def _inside(state: Array, change: Array) -> float:
    """Return the largest step, at most 1, that keeps a positive state positive."""
    return 1 / max(1.0, float((-change / state).max()))
