"""Fake quantization of weights that a module keeps under names of its own: attention, recurrent, registered layers."""

import copy
import pickle

import pytest
import torch
from helpers.named_weights import CASES, Gated, Twisted, first, make, weights_of
from helpers.numbers import assert_agree
from torch import nn

from lightning_mpq.finetune import fake_quantize
from lightning_mpq.modules import pack_model
from lightning_mpq.network.named_weights import register_layer
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

SCHEME = WeightScheme(3, "channel", "half")


@pytest.fixture(autouse=True)
def registered():
    register_layer(Gated, ["value", "gate"], linear=False, output_dim=1)
    register_layer(Twisted)


@pytest.mark.parametrize("case", CASES)
def test_forward_is_the_packed_models_before_and_after_training(case):
    model, x = make(case)
    policy = BitPolicy(dict.fromkeys(weights_of(model), SCHEME))
    packed = copy.deepcopy(model)
    pack_model(packed, policy)
    keys, parameters = list(model.state_dict()), [id(value) for value in model.parameters()]
    handle = fake_quantize(model, policy)
    assert [id(value) for value in model.parameters()] == parameters
    assert list(model.state_dict()) == keys
    assert set(handle.quantizers) == set(policy)
    with torch.no_grad():
        assert_agree(first(model(x)), first(packed(x)))
    for how in (copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(first(how(model)(x)), first(model(x)), rtol=0, atol=0)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.SGD([*model.parameters(), *handle.parameters()], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        first(model(x)).square().mean().backward()
        assert all(weight.grad is not None for weight, _ in handle.weights.values())
        assert all(scale.grad is not None for scale in handle.parameters())
        optimizer.step()
    model.eval()
    with torch.no_grad():
        last = first(model(x))
        handle.pack()
        assert_agree(first(model(x)), last)


@pytest.mark.parametrize("case", ["lstm", "encoder", "gated"])
def test_restored_layers_are_float_ones(case):
    model, x = make(case)
    classes = [type(module) for module in model.modules()]
    handle = fake_quantize(model, BitPolicy(dict.fromkeys(weights_of(model), SCHEME)))
    twin, _ = make(case)
    twin.load_state_dict(model.state_dict())
    with handle.float_weights():
        torch.testing.assert_close(first(model(x)), first(twin(x)), rtol=0, atol=0)
    assert not torch.equal(first(model(x)), first(twin(x)))
    handle.restore()
    assert [type(module) for module in model.modules()] == classes
    torch.testing.assert_close(first(model(x)), first(twin(x)), rtol=0, atol=0)
