"""Hundreds of small random programs of every structure that budgets and rules can give them, against all policies."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.taylor_models import every_plan, make_taylor, stored_bits

from lightning_mpq.allocation import Budget, CustomCost, Rules, allocate
from lightning_mpq.errors import InfeasibleBudgetError

EACH = 25
BITS = (2, 3, 4, 8)


IN_FILES = {2: 2, 3: 4, 4: 4, 8: 8}
"""A file's containers of 2, 4 and 8 bits."""


def contained(taylor, held=IN_FILES):
    """The same where a weight of so many bits takes others, and scales take nothing."""
    weights = {group.name: group.weight_count for group in taylor.groups}
    own = tuple(replace(c, stored_bits=held[c.scheme.bits] * weights[c.group]) for c in taylor.candidates)
    return replace(taylor, candidates=own)


def size_of(taylor, policy):
    """Bits as the candidates store them."""
    chosen = taylor.indices(policy)
    return sum(taylor.candidates[index].stored_bits for index in chosen)


def averages(taylor):
    weights = sum(group.weight_count for group in taylor.groups)
    return lambda policy: size_of(taylor, policy) / weights


def one_budget(taylor, random):
    limit = random.uniform(2.3, 6)
    average = averages(taylor)
    return Budget(average_bits=limit), None, lambda policy: average(policy) <= limit


def several_budgets(taylor, random):
    average, limit = averages(taylor), random.uniform(2.3, 6)
    wide = int(random.integers(0, 3))
    operations = {group.name: float(random.integers(1, 50)) for group in taylor.groups}
    share = random.uniform(2, 6)
    budget = Budget(
        average_bits=limit,
        mac_average_bits=share,
        macs=operations,
        custom=(CustomCost("wide", lambda group, scheme: float(scheme.bits > 3), limit=wide),),
    )

    def keeps(policy):
        bits = policy.bits()
        by_macs = sum(bits[name] * count for name, count in operations.items()) / sum(operations.values())
        return average(policy) <= limit and by_macs <= share and sum(b > 3 for b in bits.values()) <= wide

    return budget, None, keeps


def largest_group(taylor, random):
    sizes = sorted(c.stored_bits / 8 for c in taylor.candidates)
    limit = sizes[int(random.integers(len(sizes) // 3, len(sizes)))]
    return (
        Budget(largest_group_bytes=limit),
        None,
        lambda policy: all(taylor.candidates[index].stored_bits <= 8 * limit for index in taylor.indices(policy)),
    )


def equal_groups(taylor, random):
    budget, _, keeps = one_budget(taylor, random)
    first, last = taylor.groups[0].name, taylor.groups[-1].name
    rules = Rules(equal=[[first, last]])
    return budget, rules, lambda policy: keeps(policy) and policy.bits()[first] == policy.bits()[last]


def blocks(taylor, random):
    budget, _, keeps = one_budget(taylor, random)

    def steps(policy):
        bits = policy.bits()
        return all(len({bits[name] for name in bits if name.startswith(f"block{at}.")}) <= 1 for at in range(2))

    return budget, Rules(block_depth=1), lambda policy: keeps(policy) and steps(policy)


def few_widths(taylor, random):
    budget, _, keeps = one_budget(taylor, random)
    most = int(random.integers(1, 3))
    rules = Rules(max_distinct_bits=most)
    return budget, rules, lambda policy: keeps(policy) and len(set(policy.bits().values())) <= most


def bounded_widths(taylor, random):
    budget, _, keeps = one_budget(taylor, random)
    first = taylor.groups[0].name
    least = int(random.choice([3, 4]))
    rules = Rules(min_bits={first: least}, max_bits={"*": 4})
    return (
        budget,
        rules,
        lambda policy: keeps(policy) and policy.bits()[first] >= least and max(policy.bits().values()) <= 4,
    )


STRUCTURES = (one_budget, several_budgets, largest_group, equal_groups, blocks, few_widths, bounded_widths)
KINDS = ("definite", "indefinite", "additive", "contained")


@pytest.mark.filterwarnings("ignore:The budget .* bounds nothing")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_the_best_policy_is_found_and_its_bound_holds(structure, kind):
    feasible = 0
    for seed in range(EACH):
        random = np.random.default_rng([seed, STRUCTURES.index(structure), KINDS.index(kind)])
        taylor = make_taylor(groups=int(random.integers(2, 4)), bits=BITS, seed=seed, indefinite=kind == "indefinite")
        if kind == "contained":
            taylor = contained(taylor)
        budget, rules, keeps = structure(taylor, random)
        objective = "additive" if kind == "additive" else "quadratic"
        values = [_objective(taylor, policy, objective) for policy in every_plan(taylor) if keeps(policy)]
        if not values:
            with pytest.raises(InfeasibleBudgetError):
                allocate(taylor, budget, rules=rules, objective=objective)
            continue
        feasible += 1
        found = allocate(taylor, budget, rules=rules, objective=objective, gap=0.0, solver=("highs", "cbc")[seed % 2])
        rounding = 2e-6 * max(abs(min(values)), found.reference)
        assert keeps(found.policy)
        assert found.value == pytest.approx(_objective(taylor, found.policy, objective))
        assert found.lower_bound <= min(values) + 1e-9 * max(map(abs, values))
        assert min(values) - rounding <= found.value <= min(values) + rounding
    assert feasible > EACH / 4


def _objective(taylor, policy, objective):
    said = taylor.predict(policy)
    return said.value - (said.between if objective == "additive" else 0.0)


@pytest.mark.parametrize("indefinite", [False, True])
def test_the_fewest_bytes_for_a_loss_are_found(indefinite):
    for seed in range(EACH):
        random = np.random.default_rng(seed)
        taylor = make_taylor(groups=3, bits=BITS, seed=seed, indefinite=indefinite)
        plans = every_plan(taylor)
        losses = np.array([taylor.predict(plan).value for plan in plans])
        limit = float(np.quantile(losses, random.uniform(0.1, 0.9)))
        if limit <= 0:
            continue
        least = min(stored_bits(taylor, plan) for plan, loss in zip(plans, losses, strict=True) if loss <= limit)
        found = allocate(taylor, Budget(max_loss=limit), gap=0.0)
        assert found.predicted_loss <= limit * (1 + 1e-9)
        assert stored_bits(taylor, found.policy) == least
        assert found.lower_bound <= found.costs["bytes"]


def test_budgets_that_containers_set_against_each_other_are_told():
    """3 bits lie in 4: a least width of 3 and 3.5 bits on average go together in our layers, and not in the file."""
    taylor = contained(make_taylor(groups=3, bits=BITS), {bits: bits for bits in BITS})
    rules, budget = Rules(min_bits={"*": 3}), Budget(average_bits=3.5)
    assert set(allocate(taylor, budget, rules=rules).policy.bits().values()) <= {3, 4}
    held = contained(taylor)
    with pytest.raises(InfeasibleBudgetError, match=r"average_bits=3.5 is below the least possible value, 4 bits"):
        allocate(held, budget, rules=rules)
    # Each can be kept alone: the file's headers take what the average leaves.
    weights = sum(group.weight_count for group in taylor.groups)
    with pytest.raises(InfeasibleBudgetError, match="file_bytes=.* 1000 are there whatever the bits"):
        allocate(held, Budget(average_bits=4.5, file_bytes=1000 + 1.5 * weights / 8, file_rest=1000))
    few = CustomCost("narrow", lambda group, scheme: float(scheme.bits < 8), limit=1)
    with pytest.raises(InfeasibleBudgetError, match="No policy keeps these budgets all at once.*file_bytes.*narrow"):
        allocate(held, Budget(file_bytes=1000 + 2.5 * weights / 8, file_rest=1000, custom=(few,)))
