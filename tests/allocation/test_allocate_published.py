"""Published problems with known optima, and a measured Taylor model."""

import json
from pathlib import Path

import mip
import numpy as np
import pytest
import torch
from helpers.profiles import nearest_candidates
from helpers.taylor_models import additive_taylor, make_taylor

from lightning_mpq.allocation import Budget, CustomCost, Rules, SolveStatus, allocate
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups.groups import LayerGroup

DATA = Path(__file__).parents[1] / "data"
HAWQ = json.loads((DATA / "hawq_v3_ilp.json").read_text())
MCT = json.loads((DATA / "mct_lp_solver.json").read_text())


@pytest.mark.parametrize("solver", ["highs", "cbc"])
@pytest.mark.parametrize(("network", "number"), [(n, i) for n in ("resnet18", "resnet50") for i in range(9)])
def test_hawq_v3_plans(network, number, solver):
    data = HAWQ[network]
    problem = data["problems"][number]
    gain = [t * (b - a) for t, a, b in zip(data["trace"], data["delta4_squared"], data["delta8_squared"], strict=True)]
    taylor = additive_taylor([[0.0, g] for g in gain], bits=[4, 8])
    cost = {4: data["cost_at_4"][problem["cost"]], 8: data["cost_at_8"][problem["cost"]]}
    place = {group.name: i for i, group in enumerate(taylor.groups)}
    measured = CustomCost("cost", lambda group, scheme: cost[scheme.bits][place[group.name]], problem["limit"])
    rules = Rules(equal=[[f"layer{i:02d}" for i in tie] for tie in data["ties"]])
    plan = allocate(taylor, Budget(custom=(measured,)), rules=rules, gap=0.0, solver=solver)
    assert plan.value == pytest.approx(problem["optimal_objective"], abs=1e-6)
    assert list(plan.policy.bits().values()) == problem["optimal_bits"]
    assert plan.costs["cost"] <= problem["limit"] * (1 + 1e-9)
    assert plan.status is SolveStatus.OPTIMAL


@pytest.mark.parametrize("number", range(9))
def test_mct_plans(number):
    case = MCT["cases"][number]
    taylor = additive_taylor(MCT["sensitivity"], bits=[2, 3, 4, 5])
    place = {group.name: i for i, group in enumerate(taylor.groups)}
    measured = CustomCost("cost", lambda group, scheme: MCT["cost"][place[group.name]][scheme.bits - 2], case["budget"])
    if case["choice"] is None:
        with pytest.raises(InfeasibleBudgetError, match="cost=9.99 is below the least possible value, 10"):
            allocate(taylor, Budget(custom=(measured,)))
        return
    plan = allocate(taylor, Budget(custom=(measured,)), gap=0.0)
    assert [bits - 2 for bits in plan.policy.bits().values()] == case["choice"]


def resnet20(curvature, scale=1.0):
    data = np.load(DATA / "resnet20_taylor.npz")
    names = [f"layer{i:02d}" for i in range(22)]
    groups = tuple(LayerGroup(n, (n,), ((1, int(w)),)) for n, w in zip(names, data["weights"], strict=True))
    G = torch.tensor(data[curvature], dtype=torch.float64) * scale
    gradient = torch.tensor(data["gradient"], dtype=torch.float64) * scale * (curvature == "hessian")
    candidates = nearest_candidates(groups, bits=[int(b) for b in data["bits"]])
    return TaylorModel(groups, candidates, gradient, (G + G.T) / 2, curvature, "task", 512)


@pytest.mark.parametrize("average_bits", [2.25, 2.5, 3, 4])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton", "fisher"])
def test_resnet20_is_proved_to_a_thousandth(curvature, average_bits):
    plan = allocate(resnet20(curvature), Budget(average_bits=average_bits), time_limit=120)
    assert plan.gap <= 1e-3
    assert plan.status.is_proved
    assert plan.absolute_gap <= 1e-3 * abs(plan.predicted_loss) * (1 + 1e-9)
    assert plan.costs["average_bits"] <= average_bits
    assert plan.additive_loss > plan.predicted_loss * 1.05  # pairs of layers matter on this network


@pytest.mark.parametrize("average_bits", [6.0, 7.0, 7.1, 7.5])
def test_prices_of_loose_budgets_are_found(average_bits):
    # The best price is ten powers of ten below that of a policy of two bits, whose loss is 1e10 times as large.
    assert allocate(resnet20("fisher"), Budget(average_bits=average_bits), time_limit=120).gap <= 1e-3


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_the_loss_does_not_change_the_plan(scale):
    for make in (lambda s: resnet20("fisher", s), lambda s: make_taylor(groups=8, indefinite=True, scale=s)):
        plain = allocate(make(1.0), Budget(average_bits=4.3), time_limit=120)
        scaled = allocate(make(scale), Budget(average_bits=4.3), time_limit=120)
        assert scaled.policy == plain.policy
        assert scaled.predicted_loss == pytest.approx(plain.predicted_loss * scale, rel=1e-9)
        assert scaled.lower_bound == pytest.approx(plain.lower_bound * scale, rel=1e-3)


def test_cbc_and_highs_agree():
    for seed in range(6):
        taylor = make_taylor(groups=7, seed=seed, indefinite=seed % 2 == 1)
        for objective in ("quadratic", "additive"):
            first, second = (
                allocate(taylor, Budget(average_bits=4.6), gap=0.0, solver=solver, objective=objective)
                for solver in ("highs", "cbc")
            )
            assert first.policy == second.policy


def small_objective():
    """An additive problem of twelve layers whose losses are about 1e-5, and its sizes."""
    random = np.random.default_rng(0)
    bits = np.arange(2, 9)
    size = np.round(10 ** random.uniform(2, 5, 12))
    loss = np.exp(random.normal(0, 1.2, 12)) * np.sqrt(size)
    return 1e-7 * loss[:, None] * 4.0 ** (2 - bits) * np.exp(random.normal(0, 0.1, (12, 7))), size


def test_cbc_is_right_where_cbc_unscaled_is_wrong():
    cost, size = small_objective()
    bits = np.arange(2, 9)
    limit = 3 * size.sum()
    model = mip.Model(solver_name=mip.CBC)
    model.verbose = 0
    x = [[model.add_var(var_type=mip.BINARY) for _ in bits] for _ in size]
    for row in x:
        model.add_constr(mip.xsum(row) == 1)
    used = (float(s * b) * v for s, row in zip(size, x, strict=True) for b, v in zip(bits, row, strict=True))
    model.add_constr(mip.xsum(used) <= float(limit))
    model.objective = mip.xsum(float(c) * v for r, y in zip(cost, x, strict=True) for c, v in zip(r, y, strict=True))
    assert model.optimize() == mip.OptimizationStatus.OPTIMAL
    claimed = sum(cost[i, int(np.argmax([v.x for v in row]))] for i, row in enumerate(x))

    taylor = additive_taylor(cost.tolist(), bits=bits.tolist())
    place = {group.name: i for i, group in enumerate(taylor.groups)}
    counted = CustomCost("bits", lambda group, scheme: size[place[group.name]] * scheme.bits, limit)
    plans = [allocate(taylor, Budget(custom=(counted,)), gap=0.0, solver=s) for s in ("cbc", "highs")]
    assert plans[0].policy == plans[1].policy
    assert claimed > 1.1 * plans[0].value  # "optimal", and far from it
