"""Rules on plans against all plans tried one by one, and rules that leave nothing."""

import numpy as np
import pytest
from helpers.taylor_models import best_plan, check_best, make_taylor, stored_bits

from lightning_mpq.allocation import Budget, Rules, SolveStatus, allocate
from lightning_mpq.schemes import WeightScheme


@pytest.fixture
def taylor():
    return make_taylor()


def test_equal_groups(taylor):
    names = [group.name for group in taylor.groups]
    plan = check_best(
        taylor,
        Budget(average_bits=5),
        lambda p: (
            p[names[0]] == p[names[3]] and stored_bits(taylor, p) <= 5 * sum(g.weight_count for g in taylor.groups)
        ),
        rules=Rules(equal=[(names[0], "*.layer3")]),
    )
    assert set(plan.policy) == set(names)


def test_overlapping_ties_join():
    taylor = make_taylor(groups=5)
    plan = allocate(
        taylor, Budget(average_bits=5), rules=Rules(equal=[("*.layer0", "*.layer2"), ("*.layer2", "*.layer4")])
    )
    bits = list(plan.policy.bits().values())
    assert bits[0] == bits[2] == bits[4]


def test_blocks_of_one_width(taylor):
    def keeps(policy):
        bits = list(policy.bits().values())
        return (
            bits[0] == bits[1]
            and bits[2] == bits[3]
            and stored_bits(taylor, policy) <= 5 * sum(g.weight_count for g in taylor.groups)
        )

    check_best(taylor, Budget(average_bits=5), keeps, rules=Rules(block_depth=1))


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("indefinite", [False, True])
def test_distinct_widths(most, indefinite):
    taylor = make_taylor(seed=7, indefinite=indefinite)
    weights = sum(g.weight_count for g in taylor.groups)

    def keeps(policy):
        return len(set(policy.bits().values())) <= most and stored_bits(taylor, policy) <= 5 * weights

    plan = check_best(taylor, Budget(average_bits=5), keeps, rules=Rules(max_distinct_bits=most))
    best = taylor.predict(best_plan(taylor, keeps)).value
    assert plan.lower_bound <= best + 1e-9 * abs(best)
    assert plan.status is SolveStatus.OPTIMAL


def test_bounds_and_fixed_schemes(taylor):
    names = [group.name for group in taylor.groups]
    rules = Rules(min_bits={names[0]: 4}, max_bits={"re:.*layer[12]": 3}, fixed={names[3]: WeightScheme(5)})
    plan = allocate(taylor, Budget(average_bits=8), rules=rules, gap=0.0)
    bits = plan.policy.bits()
    assert bits[names[0]] >= 4
    assert bits[names[1]] == bits[names[2]] == 3
    assert bits[names[3]] == 5


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (Rules(min_bits={"*": 4}, max_bits={"*.layer1": 3}), r"max_bits\['\*.layer1'\] = 3 leaves .* after min_bits"),
        (Rules(fixed={"*": 8}), r"offered \[2, 3, 4, 5\] bits"),
        (Rules(min_bits={"head": 4}), "matches no group"),
        (Rules(equal=[("*.layer0", "*.layer1")], max_bits={"*.layer0": 2}, min_bits={"*.layer1": 3}), "in common"),
    ],
)
def test_contradicting_rules_are_named(taylor, rules, message):
    with pytest.raises(ValueError, match=message):
        allocate(taylor, Budget(average_bits=8), rules=rules)


@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_rule_counts_are_checked(value):
    with pytest.raises(ValueError, match="positive integer"):
        Rules(max_distinct_bits=value)


@pytest.mark.parametrize("rule", ["min_bits", "max_bits", "min_input_bits", "max_input_bits", "fixed"])
@pytest.mark.parametrize("value", ["4", None, 2.5, True, WeightScheme])
def test_a_width_that_is_none_is_refused(rule, value):
    with pytest.raises(ValueError, match=rf"{rule}\['\*'\] must be a whole number of bits"):
        Rules(**{rule: {"*": value}})


def test_widths_may_come_from_numpy(taylor):
    plan = allocate(taylor, Budget(average_bits=8), rules=Rules(fixed={"*": np.int64(3)}, max_bits={"*": np.int64(4)}))
    assert set(plan.policy.bits().values()) == {3}


def test_a_lone_pattern_in_equal_is_refused():
    with pytest.raises(ValueError, match="list of lists"):
        Rules(equal=["*.q"])
