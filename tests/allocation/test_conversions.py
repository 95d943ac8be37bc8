"""Prices of conversions between widths of inputs: the solver's policy against all policies, and what is refused."""

from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from helpers.taylor_models import make_taylor

from lightning_mpq.allocation import Budget, allocate, with_conversions
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.schemes import FLOAT, InputScheme, LayerScheme

INPUTS = (InputScheme(4), InputScheme(8), FLOAT)


def with_inputs(seed: int) -> TaylorModel:
    """Four groups, each with four candidates, whose inputs have 4 bits, 8, or stay in float."""
    plain = make_taylor(groups=4, seed=seed)
    candidates = tuple(
        replace(candidate, scheme=LayerScheme(candidate.scheme.weight, INPUTS[index % 3]))
        for index, candidate in enumerate(plain.candidates)
    )
    return replace(plain, candidates=candidates)


@pytest.mark.parametrize("neighbours", [None, [("block0.layer0", "block1.layer3"), ("block1.layer2", "block0.layer0")]])
@pytest.mark.parametrize("seed", range(4))
def test_the_policy_is_the_best_of_all_with_its_prices(seed, neighbours):
    model = with_inputs(seed)
    names = [group.name for group in model.groups]
    pairs = list(pairwise(names)) if neighbours is None else neighbours
    by_group = [[i for i, c in enumerate(model.candidates) if c.group == name] for name in names]
    weights = sum(group.weight_count for group in model.groups)
    price = 0.3 * model.predict(model.policy([own[0] for own in by_group])).value
    best = float("inf")
    for chosen in product(*by_group):
        stored = sum(model.candidates[i].stored_bits for i in chosen) / weights
        if stored > 5.5:
            continue
        policy = model.policy(chosen)
        paid = sum(policy[one].input_bits != policy[other].input_bits for one, other in pairs)
        best = min(best, model.predict(policy).value + price * paid)
    priced = with_conversions(model, price, neighbours)
    found = allocate(priced, Budget(average_bits=5.5))
    assert priced.predict(found.policy).value == pytest.approx(best, rel=1e-6)
    paid = sum(found.policy[one].input_bits != found.policy[other].input_bits for one, other in pairs)
    assert priced.predict(found.policy).value - model.predict(found.policy).value == pytest.approx(
        price * paid, abs=1e-9
    )
    assert torch.equal(with_conversions(model, 0.0).curvature, model.curvature)


@pytest.mark.parametrize("price", [-1.0, float("nan"), True, "much"])
def test_prices_that_are_none_are_refused(price):
    with pytest.raises(ValueError, match="The price of a conversion is a loss, 0 or more, got"):
        with_conversions(with_inputs(0), price)


@pytest.mark.parametrize(
    "pair", [("block0.layer0", "elsewhere"), ("block0.layer0",) * 2, "ab", ("block0.layer0",), ([], "block0.layer0")]
)
def test_pairs_that_are_none_are_refused(pair):
    with pytest.raises(ValueError, match=r"Neighbours are pairs of two groups of the model, got .* block1\.layer3"):
        with_conversions(with_inputs(0), 0.1, [pair])


@pytest.mark.parametrize("neighbours", [5, "ab", {"a": "b"}])
def test_neighbours_are_a_list(neighbours):
    with pytest.raises(ValueError, match="neighbours must be a list such as"):
        with_conversions(with_inputs(0), 1.0, neighbours)
