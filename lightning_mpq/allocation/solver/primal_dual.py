r"""The best block convexification, by a primal-dual interior point method.

Solves the semidefinite program of `convexification` and its dual together (Helmberg, Rendl, Vanderbei,
Wolkowicz, SIAM J. Optim. 6, 1996, with Mehrotra's corrector). With Y the primal matrix and

.. math:: Z = \begin{pmatrix} z_0 & \tfrac12 q^T \\ \tfrac12 q & \tfrac12 (Q - P) \end{pmatrix}, \qquad W = Z^{-1},

a step towards ``Y Z = target I`` solves :math:`M\, dy = r`, :math:`M_{ij} = \langle A_i, Y A_j W \rangle`. Every
constraint matrix is ``w sym(u v')`` with u, v a unit vector or a difference of two, so that M is a sum of four
elementwise products of gathered entries of Y and W. The corner :math:`z_0` is free and is set so that the last
pivot of Z is the present barrier parameter. Every iterate inside of the dual cone proves a bound, whatever the
primal residual; the method may be stopped at any time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg as sla

from .convexification import Convexification, tangent_bound
from .difference_form import DifferenceForm
from .problem import Array
from .semidefinite_constraints import SemidefiniteConstraints


def interior_point(form: DifferenceForm) -> Array:
    """Return masses t > 0 with sum < 1 in each block that leave the pooled budget room if that is possible.

    They are the maximum-entropy masses of a given budget use: ``t_i ~ exp(-tilt * use_i)``.
    """
    count = len(form.group)
    use = (form.rows / np.maximum(np.abs(form.rows).sum(axis=1), 1e-300)[:, None]).sum(axis=0)
    use = use / max(float(np.abs(use).max(initial=0)), 1e-300)
    point = np.zeros(form.size)
    for tilt in (0.0, *np.geomspace(0.5, 60, 24)):
        top = np.zeros(count)
        np.maximum.at(top, form.block, -tilt * use)
        mass = np.exp(-tilt * use - top[form.block])
        total = np.exp(-top) + np.bincount(form.block, weights=mass, minlength=count)
        point = mass / total[form.block]
        if np.all(form.limits - form.rows @ point > 0.05 * np.abs(form.limits - form.rows.min(axis=1, initial=0))):
            break
    point = np.maximum(point, 1e-4)
    mass = np.bincount(form.block, weights=point, minlength=count)
    return point / np.maximum(1, mass / (1 - 1e-4))[form.block]


def convexify(
    form: DifferenceForm,
    *,
    cutoff: float = np.inf,
    tolerance: float = 0.0,
    out_of_time: Callable[[], bool] = lambda: False,
    max_steps: int = 60,
) -> Convexification:
    """Maximise the bound of the block convexification.

    Args:
        form: The program, with at least one variable.
        cutoff: Stop as soon as the bound exceeds it: there is nothing better to be found here.
        tolerance: Stop when the bound is known to be this close to the best, or closer to it than a
            twentieth of its distance to the cutoff.
        out_of_time: Asked once a step.
        max_steps: Newton steps at most.

    Returns:
        The best bound of all steps; conditional bounds are the best of all steps, too.
    """
    return _InteriorPointMethod(form).run(cutoff, tolerance, out_of_time, max_steps)


class _InteriorPointMethod:
    """State of the primal-dual method: Y and s, duals y (P, z0 and lambda), and what the bounds have proved."""

    def __init__(self, form: DifferenceForm) -> None:
        self.form = form
        self.constraints = SemidefiniteConstraints(form)
        self.blocks = form.blocks()
        n = form.size
        self.objective = np.zeros((n + 1, n + 1))
        self.objective[0, 1:] = self.objective[1:, 0] = form.linear / 2
        self.objective[1:, 1:] = form.quadratic / 2
        self._start()
        self.rounding = 1e-11 * (float(np.abs(self.objective).max()) + abs(form.constant))
        self.best = -np.inf
        self.upper = np.inf
        self.conditional = np.full(n, -np.inf)
        self.reference_conditional = np.full(len(form.group), -np.inf)

    def _start(self) -> None:
        """Start at a product measure t and at the P that centres it: ``(Q - P) / 2 = mu W^-1`` within blocks.

        W_l is the covariance of one draw from t_l; mu is large enough that what Q has between blocks
        cannot make Q - P indefinite.
        """
        form, n = self.form, self.form.size
        t = interior_point(form)
        covariance, inverse = np.zeros((n, n)), np.zeros((n, n))
        same = form.block[:, None] == form.block[None, :]
        rest = 1 - np.bincount(form.block, weights=t, minlength=len(form.group))
        covariance[same] = -np.outer(t, t)[same]
        covariance[np.arange(n), np.arange(n)] += t
        inverse[same] = (1 / rest)[np.broadcast_to(form.block[:, None], (n, n))[same]]
        inverse[np.arange(n), np.arange(n)] += 1 / t
        between = np.where(same, 0, form.quadratic / 2)
        root = np.linalg.cholesky(covariance)
        lowest = float(np.linalg.eigvalsh(root.T @ between @ root)[0])
        scale = float(np.abs(np.einsum("ij,ji->", np.where(same, form.quadratic, 0), covariance))) / max(n, 1)
        self.mu = max(-lowest * 50, 1e-3 * scale, 1e-12 * float(np.abs(form.quadratic).max()), 1e-300)
        shift = np.where(same, form.quadratic - 2 * self.mu * inverse, 0)
        self.slack = form.limits - form.rows @ t
        spread = np.abs(form.rows) @ t + 1e-300
        self.slack = np.maximum(self.slack, 1e-2 * spread)
        multipliers = self.mu / self.slack
        self.duals = self.constraints.dual_of(shift, multipliers)
        self.Y = np.empty((n + 1, n + 1))
        self.Y[0, 0], self.Y[0, 1:], self.Y[1:, 0] = 1, t, t
        self.Y[1:, 1:] = np.outer(t, t) + covariance

    def _factor(self, duals: Array) -> tuple[Array, Array, Array, float] | None:
        """Return ``S = (Q - P)/2`` inverted, t = -(Q - P)^-1 q, lambda and g; None outside of the dual cone."""
        multipliers = -duals[self.constraints.pair_count + 1 :]
        if np.any(multipliers <= 0):
            return None
        lacking = self.objective - self.constraints.dual_matrix(duals)
        factor, failed = sla.lapack.dpotrf(lacking[1:, 1:], lower=1)
        if failed:
            return None
        inverse, failed = sla.lapack.dpotri(factor, lower=1)
        if failed:
            return None
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        half_q = lacking[1:, 0]
        point = -inverse @ half_q
        bound = float(self.form.constant - multipliers @ self.form.limits)
        bound += tangent_bound(self.form, 2 * (lacking[1:, 1:] @ point), 2 * half_q, point)
        return inverse, point, multipliers, bound

    def _record(self, inverse: Array, point: Array, multipliers: Array, bound: float) -> None:
        r"""Keep the best bound, and the conditional bounds ``g + d' K_ll^-1 d / 2`` with d = e_b - t_l.

        Fixing block l at e_b and minimising over the rest freely raises the minimum by that much;
        K = (Q - P)^-1 = S^-1 / 2.
        """
        if bound > self.best:
            self.best, self.point = bound, point
            self.multipliers, self.best_duals = multipliers, self.duals.copy()
        for variables in self.blocks:
            corner = np.linalg.inv(inverse[variables[:, :, None], variables[:, None, :]])
            here = point[variables]
            away = np.eye(variables.shape[1])[None] - here[:, None, :]
            rise = np.einsum("gbi,gij,gbj->gb", away, corner, away)
            self.conditional[variables] = np.maximum(self.conditional[variables], bound + rise)
            rise = np.einsum("gi,gij,gj->g", here, corner, here)
            owner = self.form.block[variables[:, 0]]
            self.reference_conditional[owner] = np.maximum(self.reference_conditional[owner], bound + rise)

    def run(self, cutoff: float, tolerance: float, out_of_time: Callable[[], bool], max_steps: int) -> Convexification:
        """Step until the bound is good enough; see `convexify`."""
        factored = self._factor(self.duals)
        for _ in range(max_steps):
            if factored is None:
                break
            inverse, point, multipliers, bound = factored
            self._record(*factored)
            if self.best > cutoff or out_of_time():
                break
            primal = float((self.objective * self.Y).sum()) + self.form.constant
            residual = self.constraints.right - self.constraints.inner(self.Y)
            residual[self.constraints.pair_count + 1 :] -= self.slack
            if np.abs(residual).max() < 1e-7 * (1 + np.abs(self.constraints.right).max()):
                self.upper = min(self.upper, primal)
            hopeless = (cutoff - self.upper) / 20 if np.isfinite(cutoff) else 0.0
            if self.upper - self.best <= max(tolerance, hopeless, self.rounding):
                break
            with np.errstate(over="ignore", invalid="ignore"):  # ends the steps, not the proof
                factored = self._step(inverse, point, multipliers, bound)
        return self._result()

    def _step(
        self, inverse: Array, point: Array, multipliers: Array, bound: float
    ) -> tuple[Array, Array, Array, float] | None:
        """Take one predictor-corrector step; None if no step can be taken any more."""
        n, constraints = self.form.size, self.constraints
        # The pivot of Z_00 is free: centre it at the present mu.
        mu = self.mu
        pivot = mu
        W = np.empty((n + 1, n + 1))
        W[0, 0], W[0, 1:], W[1:, 0] = 1 / pivot, point / pivot, point / pivot
        W[1:, 1:] = inverse + np.outer(point, point) / pivot
        budget = slice(constraints.pair_count + 1, None)
        rows = np.arange(constraints.pair_count + 1, len(self.duals))
        M = constraints.newton_matrix(self.Y, W)
        M[rows, rows] += self.slack / multipliers
        scale = 1 / np.sqrt(M.diagonal())
        M *= scale[:, None]
        M *= scale
        M[np.arange(len(M)), np.arange(len(M))] += 1e-13
        # The transpose lies in memory as LAPACK wants it, so nothing is copied.
        factor, failed = sla.lapack.dpotrf(M.T, lower=0, overwrite_a=1)
        if failed or not np.isfinite(scale).all():
            return None
        W_inner = constraints.inner(W)

        def direction(target: float, correction: Array, row_correction: Array) -> tuple[Array, Array, Array, Array]:
            right = constraints.right - target * W_inner + constraints.inner(correction)
            right[budget] += row_correction - target / multipliers
            duals = sla.lapack.dpotrs(factor, right * scale, lower=0)[0] * scale
            dZ = -constraints.dual_matrix(duals)
            YZW = self.Y @ dZ @ W
            dY = target * W - self.Y - (YZW + YZW.T) / 2 - correction
            ds = target / multipliers - self.slack + self.slack / multipliers * duals[budget] - row_correction
            return duals, dZ, dY, ds

        zero = np.zeros_like(W)
        gap = float(n + 1 + len(rows))
        Z = self._pivoted_dual(inverse, point, pivot)
        now = float((self.Y * Z).sum() + self.slack @ multipliers) / gap
        duals, dZ, dY, ds = direction(0.0, zero, np.zeros(len(rows)))
        primal, dual = self._step_lengths(dY, ds, duals, dZ, W, multipliers, 1.0)
        after = float(((self.Y + primal * dY) * (Z + dual * dZ)).sum())
        after += float((self.slack + primal * ds) @ (multipliers - dual * duals[budget]))
        ratio = min(max(float(after) / gap / now, 0.0), 1.0)
        target = now * max(ratio**2 if max(primal, dual) > 0.3 else ratio, 1e-4)
        product = dY @ dZ @ W
        row_correction = -ds * duals[budget] / multipliers
        duals, dZ, dY, ds = direction(target, (product + product.T) / 2, row_correction)
        primal, dual = self._step_lengths(dY, ds, duals, dZ, W, multipliers, 0.95)
        if max(primal, dual) < 1e-6:
            return None
        self.Y += primal * dY
        self.slack = self.slack + primal * ds
        self.duals = self.duals + dual * duals
        factored = self._factor(self.duals)
        while factored is None and dual > 1e-8:
            dual /= 2
            self.duals = self.duals - dual * duals
            factored = self._factor(self.duals)
        if factored is None:
            return None
        n_mu = float((self.objective * self.Y).sum()) + self.form.constant - factored[3]
        self.mu = max(n_mu, self.rounding, 1e-300) / gap
        return factored

    def _pivoted_dual(self, inverse: Array, point: Array, pivot: float) -> Array:
        """Return Z with its corner set so that its last pivot is the given one."""
        Z: Array = self.objective - self.constraints.dual_matrix(self.duals)
        Z[0, 0] = pivot - Z[1:, 0] @ point
        return Z

    def _step_lengths(
        self, dY: Array, ds: Array, duals: Array, dZ: Array, W: Array, multipliers: Array, damping: float
    ) -> tuple[float, float]:
        """Return how far Y, s and Z, lambda can go and stay inside of their cones, damped, at most 1."""
        budget = slice(self.constraints.pair_count + 1, None)
        if not (np.isfinite(dY).all() and np.isfinite(dZ).all()):
            return 0.0, 0.0
        try:
            primal = _length_to_boundary(np.linalg.cholesky(self.Y), dY)
            dual = _length_to_boundary(None, dZ, np.linalg.cholesky(W))
        except np.linalg.LinAlgError:  # at the boundary, to rounding: there is no way on
            return 0.0, 0.0
        shrinking = ds < 0
        if shrinking.any():
            primal = min(primal, float((-self.slack[shrinking] / ds[shrinking]).min()))
        shrinking = duals[budget] > 0
        if shrinking.any():
            dual = min(dual, float((multipliers[shrinking] / duals[budget][shrinking]).min()))
        return min(1.0, damping * primal), min(1.0, damping * dual)

    def _result(self) -> Convexification:
        shift = 2 * self.constraints.dual_matrix(self.best_duals)[1:, 1:]
        return Convexification(
            self.best, self.conditional, self.reference_conditional, self.point, self.upper, shift, self.multipliers
        )


def _length_to_boundary(factor: Any, change: Array, inverse_factor: Any = None) -> float:
    """Return the largest step that keeps ``L L' + step * change`` positive definite.

    Args:
        factor: L, or None if its inverse transpose product is known better.
        change: Symmetric.
        inverse_factor: Factor R of the inverse ``R R'``, used instead of L.
    """
    if inverse_factor is not None:
        relative = inverse_factor.T @ change @ inverse_factor
    else:
        assert factor is not None
        half = sla.solve_triangular(factor, change, lower=True, check_finite=False)
        relative = sla.solve_triangular(factor, half.T, lower=True, check_finite=False)
    lowest = float(sla.eigh((relative + relative.T) / 2, eigvals_only=True, subset_by_index=[0, 0])[0])
    return np.inf if lowest >= 0 else -1 / lowest
