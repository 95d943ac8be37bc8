"""Derivatives of the dual barrier: gradient against differences, Hessian against its matrix, the closed form."""

import numpy as np
import pytest

from lightning_mpq.allocation.solver.clock import Clock
from lightning_mpq.allocation.solver.difference_form import difference_form
from lightning_mpq.allocation.solver.dual_barrier import DualBarrier
from lightning_mpq.allocation.solver.newton_system import _conjugate_gradients, _direct, _matrix, _product
from lightning_mpq.allocation.solver.problem import Problem
from lightning_mpq.allocation.solver.separable import separable_start


def barrier_of(problem):
    form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
    start = separable_start(form, 1e-3 * float(np.abs(form.own).max()))
    barrier = DualBarrier(form, start.hessian, start.multipliers)
    assert barrier.factorise()
    return barrier, start.mu


def problem_of(seed):
    """Eight groups of one to four candidates that share directions, two budgets."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(8), random.integers(1, 5, 8))
    count = len(group)
    shared = random.normal(size=(12, count))
    rows = random.uniform(1, 2, (2, count))
    least = np.minimum.reduceat(rows, np.searchsorted(group, np.arange(8)), axis=1).sum(axis=1)
    curvature = shared.T @ shared / 12 - 0.3 * np.eye(count)
    return Problem(random.normal(size=count), curvature, group, rows, 1.1 * least, np.ones(count))


@pytest.mark.parametrize("number", range(6))
def test_derivatives_agree(number):
    barrier, mu = barrier_of(problem_of(number))
    base = (barrier.hessian, barrier.multipliers)
    gradient = barrier.gradient(mu)
    matrix = np.tril(_matrix(barrier, mu))
    matrix += np.tril(matrix, -1).T
    direction = np.linalg.solve(matrix, np.random.default_rng(number).normal(size=len(gradient)))
    product = _product(barrier, mu, direction)
    assert product == pytest.approx(matrix @ direction, abs=1e-8 * np.abs(product).max())
    length = 1e-5 / max(np.sqrt(direction @ product / mu), 1e-300)
    assert barrier.move(base, direction, length)
    above, slope_above = barrier.value(mu), barrier.gradient(mu)
    assert barrier.move(base, direction, -length)
    below, slope_below = barrier.value(mu), barrier.gradient(mu)
    scale = np.sqrt(mu * (direction @ product))
    assert (above - below) / (2 * length) == pytest.approx(gradient @ direction, abs=1e-3 * scale)
    curved = (slope_below - slope_above) / (2 * length)
    assert curved == pytest.approx(product, abs=1e-4 * np.abs(product).max())


@pytest.mark.parametrize("number", range(6))
def test_conjugate_gradients_solve_what_the_factor_solves(number):
    barrier, mu = barrier_of(problem_of(number))
    gradient = barrier.gradient(mu)
    exact = _direct(_matrix(barrier, mu), gradient)
    found = _conjugate_gradients(barrier, mu, gradient, Clock(np.inf))
    error = found - exact
    assert error @ _product(barrier, mu, error) <= 1e-3 * (exact @ _product(barrier, mu, exact))


def test_without_pairs_the_closed_form_is_the_maximiser():
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 4)
    rows = random.uniform(1, 2, (1, 32))
    problem = Problem(
        random.normal(size=32), np.diag(random.uniform(1, 2, 32)), group, rows, np.array([10.5]), np.ones(32)
    )
    barrier, mu = barrier_of(problem)
    assert np.abs(barrier.gradient(mu)).max() < 1e-5
