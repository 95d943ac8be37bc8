import itertools
import json
from dataclasses import replace

import pytest
import torch
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Allocation, Budget, SolveStatus, allocate
from lightning_mpq.errors import InfeasibleBudgetError


@pytest.fixture
def taylor():
    return make_taylor()


def best_by_enumeration(taylor, max_average_bits):
    """Least predicted loss of every plan within an average, and the bits of the plan."""
    per_group = [[i for i, c in enumerate(taylor.candidates) if c.group == g.name] for g in taylor.groups]
    weights = sum(group.weight_count for group in taylor.groups)
    plans = []
    for chosen in itertools.product(*per_group):
        if sum(taylor.candidates[i].stored_bits for i in chosen) / weights <= max_average_bits:
            policy = taylor.policy(chosen)
            plans.append((taylor.predict(policy).value, policy.bits()))
    return min(plans, key=lambda plan: plan[0])


@pytest.mark.parametrize("indefinite", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("solver", ["highs", "cbc"])
def test_allocate_finds_what_enumeration_finds(seed, indefinite, solver):
    taylor = make_taylor(seed=seed, indefinite=indefinite)
    loss, bits = best_by_enumeration(taylor, 5.0)
    allocation = allocate(taylor, Budget(average_bits=5.0), gap=0.0, solver=solver)
    assert allocation.predicted_loss == pytest.approx(loss, rel=1e-12)
    assert allocation.policy.bits() == bits
    assert allocation.status is SolveStatus.OPTIMAL
    assert allocation.lower_bound <= loss + 1e-12 * abs(loss)
    assert allocation.gap <= 2e-6


def test_costs_are_counted_from_the_plan(taylor):
    allocation = allocate(taylor, Budget(average_bits=5.0, bytes=400))
    stored = sum(group.stored_bits(allocation.policy[group.name]) for group in taylor.groups)
    weights = sum(group.weight_count for group in taylor.groups)
    assert allocation.costs["average_bits"] == stored / weights <= 5.0
    assert allocation.costs["bytes"] == stored / 8 + taylor.float_bytes
    assert allocation.limits == {"average_bits": 5.0, "bytes": 400}


def test_float_bytes_count_against_a_byte_budget():
    lean, heavy = make_taylor(float_bytes=0), make_taylor(float_bytes=100)
    plan = allocate(lean, Budget(bytes=300), gap=0.0)
    same = allocate(heavy, Budget(bytes=400), gap=0.0)
    assert plan.policy == same.policy
    assert same.costs["bytes"] == plan.costs["bytes"] + 100


def test_prediction_is_the_models_own(taylor):
    allocation = allocate(taylor, Budget(average_bits=5.0))
    assert allocation.prediction == taylor.predict(allocation.policy)
    assert allocation.additive_loss == taylor.predict(allocation.additive_policy).value
    assert allocation.additive_loss >= allocation.predicted_loss


def test_additive_objective_ignores_pairs(taylor):
    allocation = allocate(taylor, Budget(average_bits=5.0), objective="additive", gap=0.0)
    parts = allocation.prediction
    assert allocation.value == pytest.approx(parts.gradient + parts.within)
    assert allocation.policy == allocation.additive_policy


def test_pairs_within_their_error_are_left_out_and_the_answer_says_why():
    measured = make_taylor(groups=6, errors=True)
    scale = measured.curvature.diagonal().sqrt()
    noisy = replace(measured, curvature_error=100 * torch.outer(scale, scale))
    allocation = allocate(noisy, Budget(average_bits=4.0))
    assert allocation.objective == "additive"
    assert allocation.status is SolveStatus.OPTIMAL
    assert "zero within their error" in allocation.to_dict()["details"]["pairs"]["reason"]
    assert allocation.value == pytest.approx(allocation.prediction.gradient + allocation.prediction.within)
    assert allocation.policy == allocate(noisy, Budget(average_bits=4.0), objective="additive", gap=0.0).policy
    told = allocate(measured, Budget(average_bits=4.0))
    assert told.objective == "quadratic"
    assert "pairs" not in told.details


@pytest.mark.parametrize("objective", ["quadratic", "additive"])
def test_no_time_still_gives_a_feasible_plan(taylor, objective):
    allocation = allocate(taylor, Budget(average_bits=4.5), time_limit=0, objective=objective)
    assert allocation.costs["average_bits"] <= 4.5
    best = best_by_enumeration(taylor, 4.5)[0]
    if objective == "quadratic":
        assert allocation.lower_bound <= best + 1e-12 * abs(best) <= allocation.value * (1 + 1e-9)


def test_an_impossible_budget_names_the_least_and_the_most(taylor):
    least = sum(min(c.stored_bits for c in taylor.candidates if c.group == g.name) for g in taylor.groups)
    with pytest.raises(InfeasibleBudgetError, match=f"least possible value, {least / 8:.10g} bytes.*most possible"):
        allocate(taylor, Budget(bytes=least / 8 - 1))
    assert allocate(taylor, Budget(bytes=least / 8)).costs["bytes"] == least / 8


def test_a_budget_above_the_most_possible_says_so_and_both_ends():
    with pytest.warns(UserWarning, match="average_bits=99 bounds nothing: the most possible value is .*the least is"):
        allocation = allocate(make_taylor(), Budget(average_bits=99))
    assert set(allocation.policy.bits().values()) == {5}


def test_nothing_is_printed(taylor, capfd):
    for solver in ("highs", "cbc"):
        allocate(taylor, Budget(average_bits=4.5), solver=solver)
        allocate(taylor, Budget(average_bits=4.5), solver=solver, objective="additive")
    assert capfd.readouterr() == ("", "")


def test_same_seed_same_plan_and_json(taylor):
    first, second = (allocate(taylor, Budget(average_bits=4.5), seed=3) for _ in range(2))
    assert first.policy == second.policy
    assert isinstance(first, Allocation)
    restored = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert restored["bits"] == first.policy.bits()
    assert restored["status"] in SolveStatus.__members__
    assert {"additive", "local search", "bound"} <= set(restored["seconds"])


def test_progress_runs_from_nothing_to_everything(taylor):
    seen = []
    allocate(taylor, Budget(average_bits=4.5), progress=lambda fraction, message: seen.append((fraction, message)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert all(message for _, message in seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "linear"}, "objective must be one of"),
        ({"solver": "gurobi"}, "solver must be one of"),
        ({"time_limit": -1.0}, "time_limit must be"),
        ({"time_limit": float("nan")}, "time_limit must be"),
        ({"gap": -0.1}, "gap must be"),
    ],
)
def test_arguments_are_checked(taylor, arguments, message):
    with pytest.raises(ValueError, match=message):
        allocate(taylor, Budget(average_bits=4.5), **arguments)
