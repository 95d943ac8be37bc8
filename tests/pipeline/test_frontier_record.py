"""What a report says of other budgets is what the frontier and the Taylor model say."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget, CustomCost, Rules, allocate, explain
from lightning_mpq.options import SolverOptions
from lightning_mpq.pipeline import frontier_record as module
from lightning_mpq.pipeline.frontier_record import frontier_record
from lightning_mpq.pipeline.pair_blocks import MOST_BLOCKS, blocks_of, pair_blocks
from lightning_mpq.report.frontier_record import FrontierRecord


def record_of(taylor, budget=None, **options):
    budget, solver = budget or Budget(average_bits=4.0), SolverOptions(**options)
    allocation = allocate(taylor, budget, rules=solver.rules)
    return allocation, frontier_record(taylor, taylor, allocation, solver)


def policy_of(taylor, record, point):
    starts = np.cumsum([0, *(len(own.schemes) for own in record.candidates)])[:-1]
    return taylor.policy([int(start) + choice for start, choice in zip(starts, point.choice, strict=True)])


@pytest.mark.parametrize("indefinite", [False, True])
def test_every_point_is_what_its_policy_costs_and_loses(indefinite):
    taylor = make_taylor(5, indefinite=indefinite, errors=True, float_bytes=100)
    allocation, record = record_of(taylor)
    weights = sum(group.weight_count for group in taylor.groups)
    for point in (*record.points, *record.others):
        policy = policy_of(taylor, record, point)
        bits = sum(group.stored_bits(policy[group.name]) for group in taylor.groups)
        assert point.average_bits == bits / weights
        assert point.stored_bytes == 100 + bits / 8
        assert point.predicted_loss == pytest.approx(taylor.predict(policy).value, rel=1e-12)
        assert point.standard_error == taylor.predict(policy).standard_error
        assert point.lower_bound is None or point.lower_bound <= point.predicted_loss
    (chosen,) = [point for point in record.points if point.name == "chosen"]
    assert policy_of(taylor, record, chosen) == allocation.policy
    assert [point.stored_bytes for point in record.points] == sorted(point.stored_bytes for point in record.points)
    uniform = {point.name: policy_of(taylor, record, point) for point in record.others if "uniform" in point.name}
    assert {name: set(policy.bits().values()) for name, policy in uniform.items()} == {
        f"uniform {bits} bits": {bits} for bits in range(2, 6)
    }


def test_the_frontier_reaches_from_the_smallest_policy_to_the_largest():
    taylor = make_taylor(5)
    _, record = record_of(taylor)
    sizes = [own.stored_bytes for own in record.candidates]
    assert record.points[0].stored_bytes == sum(map(min, sizes))
    assert len(record.points) > 6
    assert record.note == ""


def test_candidates_say_what_a_change_of_one_group_does():
    taylor = make_taylor(4, indefinite=True)
    allocation, record = record_of(taylor)
    base = allocation.predicted_loss
    for group, own in zip(taylor.groups, record.candidates, strict=True):
        offered = [candidate for candidate in taylor.candidates if candidate.group == group.name]
        assert [record.schemes[at]["name"] for at in own.schemes] == [str(candidate.scheme) for candidate in offered]
        for candidate, change in zip(offered, own.instead, strict=True):
            changed = taylor.predict({**allocation.policy, group.name: candidate.scheme}).value
            assert change == pytest.approx(changed - base, rel=1e-3, abs=1e-9)
    strongest = explain(allocation, pairs=1).pairs[0]
    names = [group.name for group in taylor.groups]
    partner, loss = record.candidates[names.index(strongest[0])].pairs[0]
    assert (names[partner], loss) == (strongest[1], pytest.approx(strongest[2], rel=1e-3))


def test_other_bounds_and_rules_hold_for_every_budget():
    taylor = make_taylor(5)
    wide = CustomCost("wide groups", lambda group, scheme: float(scheme.bits > 3), limit=1)
    rules = Rules(equal=[("block0.*",)])
    _, record = record_of(taylor, Budget(bytes=200.0, custom=(wide,)), rules=rules)
    for point in record.points:
        bits = policy_of(taylor, record, point).bits()
        assert sum(each > 3 for each in bits.values()) <= 1
        assert bits["block0.layer0"] == bits["block0.layer1"]
    assert record.tied == ((0, 1),)


def test_too_many_candidates_leave_the_chosen_policy_and_a_word(monkeypatch):
    monkeypatch.setattr(module, "MOST_CANDIDATES", 10)
    _, record = record_of(make_taylor(5))
    assert [point.name for point in record.points] == ["chosen"]
    assert "With 20 candidates (more than 10)" in record.note


def test_a_record_comes_back_from_json():
    _, record = record_of(make_taylor(5, errors=True))
    assert FrontierRecord.from_dict(json.loads(json.dumps(asdict(record)))) == record


@pytest.mark.parametrize("groups", [1, 5, 40])
def test_blocks_of_pairs_add_up_to_the_predicted_loss(groups):
    taylor = make_taylor(groups, indefinite=True, errors=True)
    policy = taylor.policy([4 * at + at % 4 for at in range(groups)])
    blocks = pair_blocks(taylor, policy)
    loss = np.array(blocks.loss)
    prediction = taylor.predict(policy)
    assert np.triu(loss).sum() == pytest.approx(prediction.value, rel=1e-2)
    assert np.array_equal(loss, loss.T)
    assert len(blocks.names) == len(set(blocks.names)) <= MOST_BLOCKS
    if groups == 5:  # each group is a block
        chosen = taylor.indices(policy)
        errors = taylor.curvature_error[chosen][:, chosen].numpy()
        expected = np.where(np.eye(5, dtype=bool), errors / 2, errors)
        assert np.array(blocks.noise) == pytest.approx(expected, rel=1e-3)


def test_neighbours_are_blocks_by_their_names_or_in_equal_parts():
    names = [f"layer{at // 4}.part{at % 4}" for at in range(80)]
    assert blocks_of(names) == [range(at, at + 4) for at in range(0, 80, 4)]
    flat = blocks_of([f"layer{at}" for at in range(100)])
    assert len(flat) == MOST_BLOCKS
    assert [at for block in flat for at in block] == list(range(100))
