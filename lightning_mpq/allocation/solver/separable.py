r"""The separable program that is left without pairs of groups: where the central path is known in closed form.

Without pairs the maximiser of the barrier function (see `dual_barrier`) is found group by group. With
:math:`g = c + \operatorname{diag} Q / 2 + A^T \lambda`, what each candidate costs alone,

.. math:: t_l = \arg\min_t\; g_l^T t - \tfrac{\mu}{2} \Big(\sum_a \log t_a + \log t_0\Big), \quad t_0 = 1 - \sum_a t_a,
          \qquad H_l = \mu\, (\operatorname{Diag} t_l - t_l t_l^T)^{-1},

and lambda maximises a concave function of as many numbers as there are budgets. With weak pairs E this is almost the
maximiser, as long as :math:`H + E \succ 0`: with W the covariances, as long as mu exceeds
:math:`-\lambda_{\min}(W^{1/2} E W^{1/2})`. So the path is entered at the least mu at which that holds with room to
spare, and everything above it is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from .blocks import Blocks, BlockStructure
from .difference_form import DifferenceForm
from .problem import Array, Indices

_ROOM = 0.5
"""At most this share of H may be used up by pairs where the path is entered."""


@dataclass(frozen=True, eq=False)
class Start:
    """A point inside the dual cone: blocks of H, multipliers lambda > 0, and the mu whose maximiser is near."""

    hessian: Blocks
    multipliers: Array
    mu: float


def masses(cost: Array, start: Indices, block: Indices, mu: float) -> tuple[Array, Array]:
    r"""Return t and t_0 of :math:`\min_t\, g^T t - \frac{\mu}{2} (\sum_a \log t_a + \log t_0)` for every block.

    Stationarity is ``t_a = mu / (2 g_a + nu)``, ``t_0 = mu / nu``; the nu at which they add up to 1 is found by
    Newton's method from below, where the sum is convex and falling, so that it never overshoots.
    """
    least = np.minimum(np.minimum.reduceat(cost, start), 0.0)
    above, reference = 2 * (cost - least[block]), -2 * least
    nu = np.full(len(start), mu)
    for _ in range(60):
        t, rest = mu / (above + nu[block]), mu / (reference + nu)
        excess = np.add.reduceat(t, start) + rest - 1
        step = excess / ((np.add.reduceat(t * t, start) + rest * rest) / mu)
        nu = nu + step
        if np.all(np.abs(step) <= 1e-13 * nu):
            break
    return mu / (above + nu[block]), mu / (reference + nu)


def separable_centre(form: DifferenceForm, cost: Array, mu: float, multipliers: Array) -> tuple[Array, Array, Array]:
    """Return the masses t and t_0 and the multipliers of a separable program at mu, by Newton's method.

    Args:
        form: Gives blocks, rows and limits.
        cost: What each variable costs, shape [n].
        mu: Weight of the barrier.
        multipliers: Where to begin, > 0.
    """
    rows, limits = form.rows, form.limits
    t, rest = masses(cost + multipliers @ rows, form.start, form.block, mu)
    value = _dual_value(form, cost, mu, multipliers, t, rest)
    for _ in range(100):
        if not len(limits):
            break
        slope = rows @ t - limits + mu / multipliers
        # What t gives way by: (2 / mu) (D - D u u' D / (c + u'Du)) with D = t^2, u = 1, c = t_0^2.
        give = 2 / mu * t * t
        pooled = np.add.reduceat(rows * give, form.start, axis=1)
        spread = np.add.reduceat(give, form.start) + 2 / mu * rest * rest
        curvature = (rows * give) @ rows.T - (pooled / spread) @ pooled.T + np.diag(mu / multipliers**2)
        step = np.linalg.solve(curvature, slope)
        length = min(1.0, 0.9 / max(float((-step / multipliers).max()), 1e-300))
        for _ in range(20):
            trial = multipliers + length * step
            moved = masses(cost + trial @ rows, form.start, form.block, mu)
            now = _dual_value(form, cost, mu, trial, *moved)
            if now >= value - 1e-13 * abs(value):
                break
            length /= 2
        else:  # a step that loses, however short, leads astray: prices of where it ends may be off by any power of ten
            break
        converged = float(np.abs(trial / multipliers - 1).max()) < 1e-6
        multipliers, value, (t, rest) = trial, now, moved
        if converged:
            break
    return t, rest, multipliers


def _dual_value(form: DifferenceForm, cost: Array, mu: float, multipliers: Array, t: Array, rest: Array) -> float:
    barrier = mu * float(np.log(multipliers).sum()) - mu / 2 * float(np.log(t).sum() + np.log(rest).sum())
    return float((cost + multipliers @ form.rows) @ t - multipliers @ form.limits) + barrier


def separable_start(form: DifferenceForm, least: float) -> Start:
    """Return where the central path may be entered: at the least mu that pairs leave room for, at least ``least``."""
    structure = BlockStructure(form.block)
    own = structure.gather(form.quadratic)
    mu = least
    multipliers = first_multipliers(form)
    while True:
        t, rest, multipliers = separable_centre(form, form.own, mu, multipliers)
        hessian = _inverse_covariances(structure, t, rest, mu)
        used = pull_of_pairs(form, structure, own, hessian)
        if used <= _ROOM:
            return Start(hessian, multipliers, mu)
        mu *= min(max(1.2 * used / _ROOM, 2.0), 100.0)


def first_multipliers(form: DifferenceForm) -> Array:
    """Return prices of about the size that the budgets will have."""
    spread = np.maximum(np.abs(form.rows).sum(axis=1), 1e-300)
    return np.abs(form.own).sum() / spread / max(len(form.limits), 1)


def _inverse_covariances(structure: BlockStructure, t: Array, rest: Array, mu: float) -> Blocks:
    """Return ``mu (Diag t - t t')^-1 = mu (Diag 1/t + 1 1' / t_0)`` of every block."""
    blocks, begin = [], 0
    for part in structure.split(t):
        count, k = part.shape
        block = np.broadcast_to((mu / rest[begin : begin + count])[:, None, None], (count, k, k)).copy()
        places = np.arange(k)
        block[:, places, places] += mu / part
        blocks.append(block)
        begin += count
    return blocks


def pull_of_pairs(form: DifferenceForm, structure: BlockStructure, own: Blocks, hessian: Blocks) -> float:
    """Return about ``-lambda_min(R^-1 E R^-T)``, R R' = H, by Lanczos: the share of H that pairs can use up."""
    inverses = [np.linalg.inv(np.linalg.cholesky(block)) for block in hessian]
    flipped = [inverse.transpose(0, 2, 1) for inverse in inverses]

    def times(vector: Array) -> Array:
        inside = structure.times(flipped, vector.ravel())
        pulled = form.quadratic @ inside - structure.times(own, inside)
        return structure.times(inverses, pulled)

    n = form.size
    if n < 32:
        dense = np.array([times(unit) for unit in np.eye(n)])
        return -float(np.linalg.eigvalsh((dense + dense.T) / 2)[0])
    operator = LinearOperator((n, n), matvec=times, dtype=np.float64)
    try:
        lowest = eigsh(
            operator, k=1, which="SA", tol=0.05, v0=np.ones(n), ncv=24, maxiter=20, return_eigenvectors=False
        )
    except ArpackNoConvergence as error:  # a rough value does: the factorisation decides
        lowest = error.eigenvalues
    return -float(lowest[0]) if len(lowest) else 2 * _ROOM
