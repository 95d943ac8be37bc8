"""A packed model takes its own states, and refuses others before anything is loaded."""

import copy
import pickle

import pytest
import torch
from helpers.state import state_of
from torch import nn

from lightning_mpq.modules import pack_model, restore_layers
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


def network(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {"first": nn.Linear(4, 4), "norm": nn.BatchNorm1d(4), "attention": nn.MultiheadAttention(4, 2)}
    )


def packed(bits=3, seed=0):
    net = network(seed)
    floats = pack_model(net, BitPolicy({"first": WeightScheme(bits), "attention.in_proj_weight": WeightScheme(4)}))
    return net, floats


def unchanged(net, state, **options):
    before = state_of(net)
    with pytest.raises(RuntimeError, match="Nothing was loaded") as caught:
        net.load_state_dict(state, **options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_a_float_state_is_refused_whole(strict):
    net, _ = packed()
    assert "'first' is packed, and the state holds its float weight" in unchanged(
        net, network(1).state_dict(), strict=strict
    )
    attention = {name: value for name, value in network(1).state_dict().items() if not name.startswith("first")}
    assert "'attention.in_proj_weight' is packed" in unchanged(net, attention, strict=False)


def test_the_state_of_another_policy_is_refused_whole():
    assert "another policy" in unchanged(packed(3)[0], packed(5, seed=1)[0].state_dict())


def test_a_state_that_lacks_a_part_is_refused_whole():
    state = packed(seed=1)[0].state_dict()
    del state["attention.in_proj_weight.scale"]
    assert "attention.in_proj_weight.scale is missing" in unchanged(packed()[0], state)


def test_states_of_ones_own_are_taken_and_parts_of_them_too():
    net, other = packed()[0], packed(seed=1)[0]
    for taking in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        taking.load_state_dict(other.state_dict())
        assert torch.equal(taking["first"].weight, other["first"].weight)
    net.load_state_dict({"norm.bias": torch.ones(4)}, strict=False)
    assert net["norm"].bias.sum() == 4


def test_a_model_that_is_float_again_takes_float_states():
    net, floats = packed()
    restore_layers(net, floats)
    net.load_state_dict(network(1).state_dict())
    assert not net._load_state_dict_pre_hooks
