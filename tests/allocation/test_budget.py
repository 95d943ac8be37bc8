"""Every kind of budget against all plans tried one by one, and budgets that make no sense."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.taylor_models import check_best, every_plan, make_taylor, stored_bits

from lightning_mpq.allocation import Budget, CustomCost, LatencyTable, SolveStatus, allocate
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import LayerGroup
from lightning_mpq.schemes import WeightScheme


@pytest.fixture
def taylor():
    return make_taylor()


def macs_of(taylor):
    return {group.name: 10.0 * (number + 1) for number, group in enumerate(taylor.groups)}


def test_bit_operations_and_mac_average(taylor):
    macs = macs_of(taylor)

    def operations(policy):
        return sum(macs[name] * scheme.bits * 4 for name, scheme in policy.items())

    plan = check_best(
        taylor, Budget(bit_operations=1300, macs=macs, activation_bits=4), lambda p: operations(p) <= 1300
    )
    assert plan.costs["bit_operations"] == operations(plan.policy)
    plan = check_best(
        taylor, Budget(mac_average_bits=3.2, macs=macs), lambda p: operations(p) / 4 <= 3.2 * sum(macs.values())
    )
    assert plan.costs["mac_average_bits"] == pytest.approx(operations(plan.policy) / 4 / sum(macs.values()))


def test_several_budgets_at_once(taylor):
    macs = macs_of(taylor)
    weights = sum(group.weight_count for group in taylor.groups)

    def keeps(policy):
        operations = sum(macs[name] * scheme.bits * 8 for name, scheme in policy.items())
        odd = sum(scheme.bits % 2 for scheme in policy.values())
        return stored_bits(taylor, policy) <= 5 * weights and operations <= 2800 and odd <= 2

    odd = CustomCost("odd widths", lambda group, scheme: scheme.bits % 2, 2)
    plan = check_best(taylor, Budget(average_bits=5, bit_operations=2800, macs=macs, custom=(odd,)), keeps)
    assert plan.costs["odd widths"] <= 2


def test_largest_group(taylor):
    largest = max(group.stored_bits(WeightScheme(3, grid="half")) for group in taylor.groups) / 8
    plan = check_best(
        taylor,
        Budget(largest_group_bytes=largest),
        lambda p: all(group.stored_bits(p[group.name]) / 8 <= largest for group in taylor.groups),
    )
    assert plan.costs["largest_group_bytes"] <= largest
    with pytest.raises(InfeasibleBudgetError, match="largest_group_bytes=1 is below the least possible"):
        allocate(taylor, Budget(largest_group_bytes=1))


def test_decimal_budgets_are_exact():
    """3.1 average bits of 10 weights are 31 bits, although 3.1 * 10 > 31 or < 31 in floating point."""
    groups = tuple(LayerGroup(f"g{i}", (f"g{i}",), ((1, 8),)) for i in range(10))
    free = {g.name: [WeightScheme(b, granularity="tensor") for b in (2, 3)] for g in groups}
    candidates = make_candidates(groups, schemes=free)
    gradient = torch.tensor([4.0 ** (2 - c.scheme.bits) for c in candidates])
    taylor = TaylorModel(groups, candidates, gradient, torch.zeros(20, 20), "hessian", "task", 1)
    for wide in range(11):  # 8 b + 16 bits of scale each
        average = (10 * (2 * 8 + 16) + 8 * wide) / 80
        plan = allocate(taylor, Budget(average_bits=average), gap=0.0)
        assert sum(scheme.bits == 3 for scheme in plan.policy.values()) == wide
        assert plan.costs["average_bits"] == average


def write_latency(path, taylor, by_width=False):
    rows = [
        {"group": c.group, "scheme": str(c.scheme.bits) if by_width else str(c.scheme), "milliseconds": 0.5 + 0.1 * i}
        for i, c in enumerate(taylor.candidates)
    ]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("group,scheme,milliseconds\n" + "".join(f"{','.join(map(str, r.values()))}\n" for r in rows))
    return {(r["group"], c.scheme): r["milliseconds"] for r, c in zip(rows, taylor.candidates, strict=True)}


@pytest.mark.parametrize(("name", "by_width"), [("t.csv", False), ("t.json", True)])
def test_latency_table(taylor, tmp_path, name, by_width):
    time = write_latency(tmp_path / name, taylor, by_width)
    table = LatencyTable.read(tmp_path / name)
    limit = 5.0
    plan = check_best(
        taylor,
        Budget(latency=limit, latency_table=table),
        lambda p: sum(time[item] for item in p.items()) <= limit + 1e-9,
    )
    assert plan.costs["latency"] == pytest.approx(sum(time[item] for item in plan.policy.items()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("group,scheme\na,3\n", "must have group, scheme, milliseconds"),
        ("group,scheme,milliseconds\na,3,fast\n", "is no time"),
        ("group,scheme,milliseconds\na,3,1\na,3,2\n", "twice"),
        ("group,scheme,milliseconds\na,3,-1\n", "at least 0"),
        ("group,scheme,milliseconds\n", "lists no latency"),
    ],
)
def test_latency_tables_are_checked(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        LatencyTable.read(path)


def test_a_latency_table_must_cover_every_candidate(taylor):
    table = LatencyTable({("block0.layer0", "2"): 1.0})
    with pytest.raises(ValueError, match="no entry for block0.layer0 @ 3-bit"):
        allocate(taylor, Budget(latency=5.0, latency_table=table))


@pytest.mark.parametrize("indefinite", [False, True])
def test_fewest_bytes_for_a_loss(indefinite):
    taylor = make_taylor(seed=2, indefinite=indefinite, float_bytes=40)
    losses = sorted(taylor.predict(p).value for p in every_plan(taylor))
    limit = losses[len(losses) // 3]
    if limit <= 0:
        limit = next(loss for loss in losses if loss > 0)
    fewest = min(stored_bits(taylor, p) for p in every_plan(taylor) if taylor.predict(p).value <= limit)
    plan = allocate(taylor, Budget(max_loss=limit), gap=0.0)
    assert plan.predicted_loss <= limit
    assert plan.value == plan.costs["bytes"] == fewest / 8 + 40
    assert plan.lower_bound == plan.value
    assert plan.status is SolveStatus.OPTIMAL
    assert plan.minimised == "bytes"


def test_within_a_factor_of_uniform():
    taylor = make_taylor(seed=4)
    uniform = taylor.policy([i for i, c in enumerate(taylor.candidates) if c.scheme.bits == 4])
    limit = 1.5 * taylor.predict(uniform).value
    fewest = min(stored_bits(taylor, p) for p in every_plan(taylor) if taylor.predict(p).value <= limit)
    plan = allocate(taylor, Budget(within_uniform=(4, 1.5)), gap=0.0)
    assert plan.predicted_loss <= limit
    assert plan.costs["bytes"] == fewest / 8 <= stored_bits(taylor, uniform) / 8
    with pytest.raises(ValueError, match="not every group offers 7 bits"):
        allocate(taylor, Budget(within_uniform=(7, 1.0)))


def test_a_loss_that_cannot_be_reached_is_refused(taylor):
    with pytest.raises(InfeasibleBudgetError, match="below the least possible value.*best one found"):
        allocate(taylor, Budget(max_loss=1e-9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one bound"),
        ({"average_bits": 0}, "average_bits must be a positive number"),
        ({"average_bits": float("nan")}, "must be a positive number"),
        ({"bytes": -3}, "bytes must be a positive number"),
        ({"bytes": True}, "bytes must be a positive number"),
        ({"device_bytes": 10, "context": 0}, "context must be a positive integer"),
        ({"bytes": 10, "batch": 2}, "give device_bytes"),
        ({"latency": 10}, "latency_table"),
        ({"max_loss": 1.0, "within_uniform": (4, 1.0)}, "one of them"),
        ({"within_uniform": (4, 0)}, "factor of within_uniform"),
        ({"within_uniform": 4}, "a width and a factor such as"),
        ({"within_uniform": (4, 1.0, 2)}, "a width and a factor such as"),
        ({"custom": (CustomCost("c", lambda g, s: 1.0, float("inf")),)}, "finite number"),
        ({"custom": (CustomCost("c", lambda g, s: 1.0, "3"),)}, "finite number"),
        ({"custom": CustomCost("c", lambda g, s: 1.0, 3)}, "custom must be a list such as"),
        ({"custom": [("c", len, 3)]}, "a list of CustomCost"),
        ({"latency": 1, "latency_table": {("a", "3"): 1.0}}, "a LatencyTable or its file"),
        ({"bit_operations": 1, "macs": [3]}, "macs must be a mapping"),
    ],
)
def test_budgets_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Budget(**fields)


def test_what_no_policy_changes_is_named(taylor):
    taylor = replace(taylor, float_bytes=1000)
    with pytest.raises(InfeasibleBudgetError, match="1000 are there whatever the bits"):
        allocate(taylor, Budget(bytes=900))


def test_costs_are_checked(taylor):
    with pytest.raises(ValueError, match="not finite at"):
        allocate(taylor, Budget(custom=(CustomCost("c", lambda g, s: float("nan"), 1.0),)))
    for given in (None, "much"):
        with pytest.raises(ValueError, match="'c' is not finite at .*must return a number"):
            allocate(taylor, Budget(custom=(CustomCost("c", lambda g, s, given=given: given, 1.0),)))
    with pytest.raises(ValueError, match="must be a number of at least 0, got 'x'"):
        allocate(taylor, Budget(bit_operations=10, macs=dict.fromkeys(macs_of(taylor), "x")))
    with pytest.raises(ValueError, match="share a name"):
        allocate(taylor, Budget(custom=(CustomCost("bytes", lambda g, s: 1.0, 9.0),)))
    with pytest.raises(ValueError, match="or give macs="):
        allocate(taylor, Budget(bit_operations=10))
    with pytest.raises(ValueError, match="macs must give group"):
        allocate(taylor, Budget(bit_operations=10, macs={"block0.layer0": 1}))


def test_budgets_that_contradict_each_other_are_all_named(taylor):
    """Few bits are forbidden by one cost, many by another; each can be met alone."""
    wide = CustomCost("narrowness", lambda group, scheme: 8 - scheme.bits, 12)
    weights = sum(group.weight_count for group in taylor.groups)
    least = min(stored_bits(taylor, p) for p in every_plan(taylor)) / weights
    with pytest.raises(InfeasibleBudgetError, match="all at once.*average_bits.*narrowness"):
        allocate(taylor, Budget(average_bits=least + 0.01, custom=(wide,)))


@pytest.mark.parametrize("entries", [[("a", "3", 1.0)], {"a": 1.0}, {("a", 2.5): 1.0}, {("a", "3", "x"): 1.0}])
def test_a_latency_table_is_a_mapping_of_pairs(entries):
    with pytest.raises(ValueError, match=r"A latency table is a mapping such as"):
        LatencyTable(entries)


@pytest.mark.parametrize("time", ["fast", None, -1.0, float("nan"), float("inf")])
def test_a_time_is_a_number(time):
    with pytest.raises(ValueError, match="a @ 3 must be at least 0 milliseconds"):
        LatencyTable({("a", "3"): time})


def test_widths_in_a_latency_table_may_be_numbers(taylor):
    entries = {(group.name, bits): 1.0 for group in taylor.groups for bits in range(2, 6)}
    assert allocate(taylor, Budget(latency=4.0, latency_table=LatencyTable(entries))).costs["latency"] == 4.0


def test_bounds_may_come_from_numpy(taylor):
    allocation = allocate(taylor, Budget(average_bits=np.float32(4.5)))
    assert json.loads(json.dumps(allocation.to_dict()))["limits"] == {"average_bits": 4.5}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"taylor": None}, "taylor must be a TaylorModel, got None"),
        ({"budget": 4.5}, r"budget must be a Budget, got 4.5. Budget\(average_bits=...\) makes one"),
        ({"rules": {"min_bits": {"*": 3}}}, "rules must be a Rules or None"),
    ],
)
def test_what_is_no_model_budget_or_rule_is_refused(taylor, given, words):
    with pytest.raises(TypeError, match=words):
        allocate(**{"taylor": taylor, "budget": Budget(average_bits=4.5), **given})
