"""The bound by an eigenvalue shift: never above brute force, for the program and for every candidate."""

import numpy as np
import pytest

from lightning_mpq.allocation.solver.clock import Clock
from lightning_mpq.allocation.solver.difference_form import difference_form
from lightning_mpq.allocation.solver.eigenvalue_shift import eigenvalue_shift
from lightning_mpq.allocation.solver.enumeration import all_selections
from lightning_mpq.allocation.solver.problem import Problem


def weakly_paired(seed, pairs):
    """Five groups of up to four candidates, positive definite within groups, with pairs of a given strength."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(5), random.integers(2, 5, 5))
    count = len(group)
    scores = random.normal(size=(40, count))
    curvature = scores.T @ scores / 40
    curvature[group[:, None] != group[None, :]] *= pairs
    rows = random.uniform(1, 2, (2, count))
    start = np.searchsorted(group, np.arange(5))
    limits = np.array([1.15, 1.3]) * np.minimum.reduceat(rows, start, axis=1).sum(axis=1)
    return Problem(random.normal(size=count), curvature, group, rows, limits, np.ones(count))


@pytest.mark.parametrize("pairs", [0.01, 0.3, 1.0, -2.0])
def test_bounds_hold(pairs):
    found = 0
    for seed in range(30):
        problem = weakly_paired(seed, pairs)
        selections = [s for s in all_selections(problem) if problem.is_feasible(s)]
        form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
        if not selections or not len(form.limits):
            continue
        values = np.array([problem.value(selection) for selection in selections])
        shifted = eigenvalue_shift(form, Clock(np.inf), 1.0, np.inf)
        if shifted is None:
            continue
        found += 1
        taken = np.array(selections)
        assert shifted.bound <= values.min() + 1e-9
        for bound, candidate in zip(shifted.conditional, form.candidate, strict=True):
            assert bound <= values[(taken == candidate).any(axis=1)].min(initial=np.inf) + 1e-9
        for bound, group in zip(shifted.reference_conditional, form.group, strict=True):
            assert bound <= values[(taken == form.reference[group]).any(axis=1)].min(initial=np.inf) + 1e-9
    assert found > 10 or pairs == -2.0


def test_what_does_not_pay_is_left_to_others():
    problem = weakly_paired(0, 0.1)
    form = difference_form(problem, np.ones(len(problem.group), dtype=bool))
    assert eigenvalue_shift(form, Clock(0.0), 1.0, np.inf) is None
