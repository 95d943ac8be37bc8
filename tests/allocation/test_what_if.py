"""Decisions taken beforehand, against programs that never had them to decide."""

import pytest
import torch
from helpers.taylor_models import every_plan, make_taylor, stored_bits

from lightning_mpq.allocation import Budget, Rules, allocate, changes, explain, frontier, what_if
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.errors import InfeasibleBudgetError
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


def without(taylor, name):
    """The same model, had a group been left in float from the start."""
    kept = [i for i, candidate in enumerate(taylor.candidates) if candidate.group != name]
    weights = next(group.weight_count for group in taylor.groups if group.name == name)
    return TaylorModel(
        tuple(group for group in taylor.groups if group.name != name),
        tuple(taylor.candidates[i] for i in kept),
        taylor.gradient[kept],
        taylor.curvature[kept][:, kept],
        taylor.estimator,
        taylor.loss,
        taylor.samples,
        float_bytes=taylor.float_bytes + 4 * weights,
    )


@pytest.mark.parametrize("seed", range(40))
def test_a_group_in_float_is_as_if_it_had_never_been_a_candidate(seed):
    taylor = make_taylor(seed=seed, indefinite=seed % 2 == 1)
    allocation = allocate(taylor, Budget(average_bits=4.6))
    name = taylor.groups[seed % 4].name
    other = without(taylor, name)
    limit = 4.6 * sum(group.weight_count for group in other.groups)
    values = [other.predict(p).value for p in every_plan(other) if stored_bits(other, p) <= limit]
    if not values:
        with pytest.raises(InfeasibleBudgetError):
            what_if(allocation, keep_float=[name])
        return
    found = what_if(allocation, keep_float=[name], gap=0.0)
    assert found.predicted_loss == pytest.approx(min(values), abs=1e-9 * max(map(abs, values)))
    assert found.lower_bound <= min(values) + 1e-9 * abs(min(values))
    assert found.costs["bytes"] == other.float_bytes + stored_bits(other, found.policy) / 8


def test_a_fixed_width_is_a_rule_and_rules_of_groups_in_float_go():
    taylor = make_taylor(errors=True)
    rules = Rules(min_bits={"block0.layer0": 3}, equal=[["block0.layer0", "block0.layer1"]], max_bits={"*": 5})
    allocation = allocate(taylor, Budget(average_bits=4.6), rules=rules)
    found = what_if(allocation, fixed={"block1.layer2": 2}, gap=0.0)
    assert found.policy.bits()["block1.layer2"] == 2
    ruled = Rules(**{**vars(rules), "fixed": {"block1.layer2": 2}})
    same = allocate(taylor, Budget(average_bits=4.6), rules=ruled, gap=0.0)
    assert found.predicted_loss == pytest.approx(same.predicted_loss)
    assert "block0.layer0" not in what_if(allocation, keep_float=["block0.layer0"]).policy.bits()


@pytest.mark.parametrize("rule", ["fixed", "min_bits", "max_bits", "min_input_bits", "max_input_bits"])
def test_every_rule_of_a_group_in_float_goes(rule):
    taylor = make_taylor()
    first, *others = (group.name for group in taylor.groups)
    bound = 32 if "input" in rule else 4
    allocation = allocate(taylor, Budget(average_bits=5.5), rules=Rules(**{rule: {first: bound}}))
    assert set(what_if(allocation, keep_float=[first]).policy) == set(others)


def test_it_works_for_the_fewest_bytes_and_the_additive_objective():
    taylor = make_taylor()
    fewest = allocate(taylor, Budget(within_uniform=(4, 1.0)))
    assert what_if(fewest, keep_float=["block0.layer1"]).minimised == "bytes"
    additive = allocate(taylor, Budget(average_bits=4.6), objective="additive")
    assert what_if(additive, fixed={"block0.layer1": 3}).objective == "additive"


def test_it_keeps_the_budget_of_a_language_model():
    taylor = make_taylor(groups=211, bits=range(2, 9))
    allocation = allocate(taylor, Budget(average_bits=5.0), time_limit=2)
    found = what_if(allocation, keep_float=["block3.layer6"])
    assert found.costs["average_bits"] <= 5.0


def test_refusals():
    taylor = make_taylor()
    allocation = allocate(taylor, Budget(average_bits=4.6))
    with pytest.raises(ValueError, match="keep_float: the pattern 'head' matches no group"):
        what_if(allocation, keep_float=["head"])
    with pytest.raises(ValueError, match="nothing is left to decide"):
        what_if(allocation, keep_float=["*"])
    with pytest.raises(ValueError, match="no problem to solve again"):
        what_if(type(allocation)(**{**vars(allocation), "preparation": None}))


def test_changes_name_both_widths():
    before = BitPolicy({"a": WeightScheme(3), "b": WeightScheme(4), "c": WeightScheme(2)})
    after = BitPolicy({"a": WeightScheme(2), "c": WeightScheme(2), "d": WeightScheme(8)})
    assert changes(before, after) == {"a": (3, 2), "b": (4, None), "d": (None, 8)}


def test_the_frontier_says_what_another_budget_changes():
    taylor = make_taylor()
    swept = frontier(taylor, average_bits=[4.2, 4.6, 5.0], gap=0.0)
    assert swept.at(4.7).policy == allocate(taylor, Budget(average_bits=4.6), gap=0.0).policy
    assert swept.at(99).policy == swept.points[-1].policy
    with pytest.raises(InfeasibleBudgetError, match="cheapest one costs"):
        swept.at(1.0)
    assert swept.table().columns[2].header == "predicted loss, units of the task loss"
    assert swept.plot()[1].get_ylabel() == "predicted loss change, units of the task loss"


def test_a_byte_has_a_price_whichever_way_it_is_bounded():
    taylor = make_taylor(groups=6)
    by_bits = explain(allocate(taylor, Budget(average_bits=4.6)))
    total = 4.6 * sum(group.weight_count for group in taylor.groups) / 8
    by_bytes = explain(allocate(taylor, Budget(bytes=total)))
    assert by_bits.per_byte == pytest.approx(by_bytes.per_byte)
    assert "units of the task loss" in by_bits.why("block0.layer0")
    assert len(by_bits.why("block0.*").splitlines()) == 2
    assert str(by_bits).splitlines()[-1].startswith("One more byte would save about")
    with pytest.raises(ValueError, match="matches no group"):
        by_bits.why("head")
    assert explain(allocate(taylor, Budget(max_loss=1e9))).per_byte is None


def test_a_loss_that_cannot_be_reached_is_told_in_its_unit_with_the_other_bounds():
    taylor = make_taylor()
    with pytest.raises(InfeasibleBudgetError, match="units of the task loss is below .* within average_bits=4.6"):
        allocate(taylor, Budget(average_bits=4.6, max_loss=1e-9))
    assert torch.isfinite(taylor.curvature).all()
