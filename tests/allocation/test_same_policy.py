"""The same policy whichever solver is asked; of equally good ones that of fewest bytes, then of earlier candidates."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.taylor_models import additive_taylor, make_taylor

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.errors import InfeasibleBudgetError


@pytest.mark.parametrize("objective", ["quadratic", "additive"])
@pytest.mark.parametrize("seed", range(15))
def test_either_solver_gives_the_same_policy(objective, seed):
    taylor = make_taylor(groups=6, seed=seed, indefinite=seed % 3 == 2)
    if seed % 2:  # values that tie
        whole = torch.round(2 * taylor.curvature) / 2
        taylor = replace(taylor, curvature=(whole + whole.T) / 2, gradient=torch.round(taylor.gradient))
    for budget in (4.4, 5.0):
        try:
            found = [allocate(taylor, Budget(average_bits=budget), objective=objective, solver="highs")]
        except InfeasibleBudgetError:
            continue
        found.append(allocate(taylor, Budget(average_bits=budget), objective=objective, solver="cbc"))
        assert found[0].value == pytest.approx(found[1].value, rel=2e-6)
        if objective == "quadratic" or seed % 2 == 0:
            assert found[0].policy == found[1].policy


def test_an_additive_program_is_solved_to_the_last_bit_whatever_the_gap():
    random = np.random.default_rng(0)
    costs = [sorted(random.random(7).tolist(), reverse=True) for _ in range(30)]
    taylor = additive_taylor(costs, range(2, 9))
    loose, exact = (
        allocate(taylor, Budget(average_bits=6.5), objective="additive", gap=gap, time_limit=60) for gap in (0.5, 0.0)
    )
    assert loose.value == pytest.approx(exact.value, rel=2e-6)


def test_two_equal_layers_that_cannot_both_be_wide_are_told_apart_by_their_order():
    taylor = additive_taylor([[2.0, 1.0]] * 4, [2, 4])
    middle = allocate(taylor, Budget(average_bits=5.0), objective="additive").costs["average_bits"]
    policies = {
        tuple(allocate(taylor, Budget(average_bits=middle), objective="additive", solver=solver).policy.bits().values())
        for solver in ("highs", "cbc")
    }
    assert len(policies) == 1
    assert list(policies)[0] == tuple(sorted(list(policies)[0]))


def policies(seed):
    """The policies of one model at two budgets, by both objectives."""
    taylor = make_taylor(groups=8, seed=seed)
    return [
        allocate(taylor, Budget(average_bits=bits), objective=objective).policy
        for bits in (4.4, 5.0)
        for objective in ("quadratic", "additive")
    ]


def test_one_thread_or_four_give_the_same_policy():
    """Of the linear algebra, whose sums are then in another order; and with four solves at once."""
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    with limits(1):
        alone = [policies(seed) for seed in range(4)]
    with limits(4):
        assert [policies(seed) for seed in range(4)] == alone
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(policies, range(4))) == alone
