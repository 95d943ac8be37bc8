r"""Newton steps on the dual barrier, without a matrix over the unknowns where those are many.

A move (D, d) of (P, lambda) changes t by :math:`\dot t = K (D t - \operatorname{diag} D / 2 - A^T d)`, so that the
product of the Hessian with it,

.. math:: -\nabla^2 F\, (D, d)_l = \tfrac{\mu}{2} (K D K)_{ll} + \tfrac12 (\dot t_l t_l^T + t_l \dot t_l^T
          - \operatorname{Diag} \dot t_l), \qquad \mu d / \lambda^2 - A \dot t,

takes n^2 k steps for blocks of length k. (Benson, Ye, Zhang, Solving Large-Scale Sparse Semidefinite Programs for
Combinatorial Optimization, SIAM J. Optim. 10, 2000, scale the dual alike and build the system; here it is solved by
conjugate gradients.) Where pairs are weak K is nearly block diagonal, and so is the Hessian: its diagonal blocks
precondition.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.linalg as sla

from .clock import Clock
from .dual_barrier import DualBarrier
from .problem import Array

_MOST_PRODUCTS = 60
"""Of the Hessian in one Newton step."""
_ACCURACY = 1e-3
"""Of a Newton step: residual relative to the first one."""
_FEW_UNKNOWNS = 1000
"""Up to so many, building and factorising the Newton matrix costs less than some 40 products with it."""
_STRIP = 64
"""Rows of the Newton matrix that are filled at once."""


def newton_step(barrier: DualBarrier, mu: float, clock: Clock) -> tuple[Array, float] | None:
    """Return the Newton step and the Newton decrement; None if rounding leaves none."""
    gradient = barrier.gradient(mu)
    step = _direct(_matrix(barrier, mu), gradient) if len(gradient) <= _FEW_UNKNOWNS else None
    if step is None:
        step = _conjugate_gradients(barrier, mu, gradient, clock)
    if step is None or not np.isfinite(step).all():
        return None
    return step, float(np.sqrt(max(float(gradient @ step), 0.0)))


def _direct(matrix: Array, gradient: Array) -> Array | None:
    """Solve a positive definite system by its Cholesky factor; None if rounding made it indefinite."""
    factor, failed = sla.lapack.dpotrf(matrix.T, lower=0, clean=0, overwrite_a=1)
    return None if failed else sla.lapack.dpotrs(factor, gradient, lower=0)[0]


def _conjugate_gradients(barrier: DualBarrier, mu: float, gradient: Array, clock: Clock) -> Array | None:
    """Solve the Newton system by preconditioned conjugate gradients; None if a block is singular to rounding.

    They stop early when the time that is left is needed for the factorisation after the step.
    """
    needed = barrier.operations
    try:
        precondition = _preconditioner(barrier, mu)
    except np.linalg.LinAlgError:
        return None
    step, residual = np.zeros_like(gradient), gradient.copy()
    preconditioned = precondition(residual)
    direction = preconditioned.copy()
    energy = first = float(residual @ preconditioned)
    for _ in range(_MOST_PRODUCTS):
        if energy <= _ACCURACY**2 * first or not clock.fits(needed):
            break
        product = _product(barrier, mu, direction)
        curvature = float(direction @ product)
        if not curvature > 0:
            break
        length = energy / curvature
        step += length * direction
        residual -= length * product
        preconditioned = precondition(residual)
        after = float(residual @ preconditioned)
        direction = preconditioned + after / energy * direction
        energy = after
    return step


def _product(barrier: DualBarrier, mu: float, direction: Array) -> Array:
    """Return minus the Hessian of F times a packed direction."""
    count = len(direction) - len(barrier.multipliers)
    D, d = barrier.structure.unpack(direction[:count]), direction[count:]
    force = barrier.structure.times(D, barrier.point) - barrier.structure.diagonal(D) / 2 - d @ barrier.form.rows
    moved = barrier.K @ force
    blocks = barrier.structure.sandwich(barrier.K, D)
    parts = zip(blocks, barrier.structure.split(barrier.point), barrier.structure.split(moved), strict=True)
    for block, t, dt in parts:
        outer = dt[:, :, None] * t[:, None, :]
        block *= mu / 2
        block += (outer + outer.transpose(0, 2, 1)) / 2
        places = np.arange(t.shape[1])
        block[:, places, places] -= dt / 2
    prices = mu * d / barrier.multipliers**2 - barrier.form.rows @ moved
    return np.concatenate([barrier.structure.pack(blocks), prices])


def _matrix(barrier: DualBarrier, mu: float) -> Array:
    """Return the lower triangle of minus the Hessian of F, for problems whose unknowns are few."""
    a, b, weight = barrier.structure.pairs()
    K, t, rows = barrier.K, barrier.point, barrier.form.rows
    diagonal = np.where(a == b, 0.5, 0.0)

    def forces(columns: Array) -> Array:
        return columns[:, a] * (weight * t[b] - diagonal) + columns[:, b] * (weight * t[a])

    pulled = forces(K)
    count, budgets = len(a), len(rows)
    matrix = np.empty((count + budgets, count + budgets))
    for begin in range(0, count, _STRIP):
        # The lower triangle alone, in strips that stay in the cache.
        upto = min(begin + _STRIP, count)
        strip = slice(begin, upto)
        Ka, Kb = K[a[strip]], K[b[strip]]
        part = Ka[:, a[:upto]] * Kb[:, b[:upto]]
        part += Ka[:, b[:upto]] * Kb[:, a[:upto]]
        part *= mu * weight[:upto]
        part *= weight[strip, None]
        part += (weight * t[b] - diagonal)[strip, None] * pulled[a[strip], :upto]
        part += (weight * t[a])[strip, None] * pulled[b[strip], :upto]
        matrix[strip, :upto] = part
    matrix[count:, :count] = -rows @ pulled
    matrix[count:, count:] = rows @ K @ rows.T + np.diag(mu / barrier.multipliers**2)
    return matrix


def _preconditioner(barrier: DualBarrier, mu: float) -> Callable[[Array], Array]:
    """Return the inverse of minus the Hessian's diagonal blocks, one block a group and one number a budget."""
    inverses = []
    parts = zip(barrier.structure.gather(barrier.K), barrier.structure.split(barrier.point), strict=True)
    for place, (K, t) in enumerate(parts):
        a, b, weight = barrier.structure.basis(place)
        block = K[:, a][:, :, a] * K[:, b][:, :, b] + K[:, a][:, :, b] * K[:, b][:, :, a]
        block *= mu * np.outer(weight, weight)
        force = np.zeros((len(t), t.shape[1], len(a)))
        pairs = np.arange(len(a))
        force[:, a, pairs] += weight * t[:, b]
        force[:, b, pairs] += weight * t[:, a]
        same = a == b
        force[:, a[same], pairs[same]] -= 0.5
        block += force.transpose(0, 2, 1) @ (K @ force)
        inverses.append(np.linalg.inv(block))
    rows = barrier.form.rows
    prices = np.einsum("in,in->i", rows @ barrier.K, rows) + mu / barrier.multipliers**2

    def apply(residual: Array) -> Array:
        parts, begin = [], 0
        for inverse in inverses:
            end = begin + inverse.shape[0] * inverse.shape[1]
            parts.append((inverse @ residual[begin:end].reshape(len(inverse), -1, 1)).ravel())
            begin = end
        return np.concatenate([*parts, residual[begin:] / prices])

    return apply
