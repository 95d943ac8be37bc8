"""Problems at the edge: groups that cost nothing, one candidate, ties, a thousand groups, NaN and infinity."""

import itertools

import numpy as np
import pytest
import torch
from helpers.profiles import nearest_candidates
from helpers.taylor_models import check_best, make_taylor

from lightning_mpq.allocation import Budget, CustomCost, allocate
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.groups.groups import LayerGroup


@pytest.fixture
def taylor():
    return make_taylor()


def test_zero_cost_groups(taylor):
    free = CustomCost("free", lambda group, scheme: 0.0 if group.name.endswith("0") else scheme.bits, 10)
    plan = check_best(taylor, Budget(custom=(free,)), lambda p: sum(s.bits for n, s in p.items() if n[-1] != "0") <= 10)
    assert plan.costs["free"] <= 10
    nothing = CustomCost("nothing", lambda group, scheme: 0.0, 0.0)
    assert allocate(taylor, Budget(custom=(nothing,)), gap=0.0).costs["nothing"] == 0


def test_one_candidate_everywhere_and_one_group():
    single = make_taylor(bits=[3])
    plan = allocate(single, Budget(average_bits=8))
    assert set(plan.policy.bits().values()) == {3}
    assert plan.gap == 0
    lone = make_taylor(groups=1, indefinite=True)
    check_best(lone, Budget(average_bits=8), lambda p: True)


def test_a_budget_beyond_the_most_possible_binds_nothing(taylor):
    plan = check_best(taylor, Budget(average_bits=100), lambda p: True)
    assert plan.limits["average_bits"] == 100


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_and_misshapen_models_are_refused(taylor, value):
    broken = taylor.curvature.clone()
    broken[1, 1] = value
    fields = (taylor.estimator, taylor.loss, taylor.samples)
    with pytest.raises(ValueError, match="not finite"):
        TaylorModel(taylor.groups, taylor.candidates, taylor.gradient, broken, *fields)
    with pytest.raises(ValueError, match="Expected a gradient of shape"):
        TaylorModel(taylor.groups, taylor.candidates, taylor.gradient[1:], taylor.curvature, *fields)
    skewed = taylor.curvature.clone()
    skewed[0, 5] += skewed.abs().max()
    with pytest.raises(ValueError, match="not symmetric"):
        TaylorModel(taylor.groups, taylor.candidates, taylor.gradient, skewed, *fields)


def test_ties_go_to_fewer_bytes_then_to_the_earlier_name():
    groups = tuple(LayerGroup(name, (name,), ((1, 64),)) for name in "abc")
    candidates = nearest_candidates(groups, bits=[2, 4])
    flat = TaylorModel(groups, candidates, torch.zeros(6), torch.zeros(6, 6), "hessian", "task", 1)
    assert set(allocate(flat, Budget(average_bits=8)).policy.bits().values()) == {2}
    helps = torch.tensor([1.0, 0.0] * 3)
    alike = TaylorModel(groups, candidates, helps, torch.ones(6, 6), "hessian", "task", 1)
    room_for_one = (3 * candidates[0].stored_bits + 128) / 192
    for solver, seed in itertools.product(("highs", "cbc"), range(3)):
        plan = allocate(alike, Budget(average_bits=room_for_one), gap=0.0, seed=seed, solver=solver)
        assert plan.policy.bits() == {"a": 2, "b": 2, "c": 4}
        plan = allocate(alike, Budget(average_bits=plan.costs["average_bits"]), gap=0.0, objective="additive")
        assert sorted(plan.policy.bits().values()) == [2, 2, 4]


def test_a_thousand_groups():
    """Additive to proof, quadratic to a feasible plan with an honest gap; sizes too large for the convexification."""
    random = np.random.default_rng(0)
    groups = tuple(LayerGroup(f"g{i}", (f"g{i}",), ((4, int(random.integers(4, 400))),)) for i in range(1000))
    candidates = nearest_candidates(groups, bits=[2, 4, 8])
    step = torch.tensor([2.0 ** (2 - c.scheme.bits) for c in candidates], dtype=torch.float64)
    noise = torch.tensor(random.normal(size=(8, len(candidates)))) * step
    curvature = noise.T @ noise + torch.diag(step**2)
    taylor = TaylorModel(groups, candidates, torch.zeros(len(candidates)), curvature, "fisher", "divergence", 8)
    plan = allocate(taylor, Budget(average_bits=4), objective="additive")
    assert plan.status.is_proved
    assert plan.costs["average_bits"] <= 4
    known = taylor.predict(plan.policy).value
    plan = allocate(taylor, Budget(average_bits=4), time_limit=0.5)
    assert plan.costs["average_bits"] <= 4
    assert plan.value <= plan.additive_loss * (1 + 1e-9)
    assert plan.lower_bound <= known
