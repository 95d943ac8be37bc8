"""Fine-tuning with quantized inputs: what is trained is what is packed, and gradients stop at the ends of the range."""

import copy

import pytest
import torch
from helpers.networks import mlp, vectors
from torch.nn.functional import mse_loss

from lightning_mpq import fake_quantize
from lightning_mpq.finetune.inputs import InputQuantizer
from lightning_mpq.finetune.resume import pack_finetuned, resume_fake_quantization
from lightning_mpq.inputs.quantizer import InputRange, range_between
from lightning_mpq.modules import packed_layers, policy_of
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

SCHEMES = {"0": InputScheme(6), "2": InputScheme(5, "token")}
POLICY = BitPolicy({name: LayerScheme(WeightScheme(4), scheme) for name, scheme in SCHEMES.items()})
RANGES = {"0": range_between(-2, 2, SCHEMES["0"])}


def test_what_is_trained_is_what_is_packed():
    model, (x,) = mlp(6, 8, 3), vectors(16)
    plain, before = copy.deepcopy(model), model(x)
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    with handle.float_weights():
        assert torch.allclose(model(x), before, atol=0.5)
        assert not model[0]._forward_pre_hooks
    optimizer = torch.optim.SGD([*model.parameters(), *handle.parameters()], 0.1)
    target = plain(x).detach() + 0.3  # which biases alone can follow
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = mse_loss(model(x), target)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert not torch.equal(model[0]._parameters["weight"], plain[0].weight)
    expected = model(x)
    handle.pack()
    assert policy_of(model) == POLICY
    assert float(packed_layers(model)["0"].input_scale) == RANGES["0"].scale
    assert torch.equal(model(x), expected)


def test_gradients_stop_where_values_are_clipped():
    x = torch.tensor([-9.0, -1.0, 0.3, 2.0, 9.0], requires_grad=True)
    rounded = InputQuantizer(InputScheme(4), InputRange(0.25, 6))(x)
    rounded.sum().backward()
    assert rounded.tolist() == [-1.5, -1.0, 0.25, 2.0, 2.25]
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


def test_a_saved_state_brings_ranges_back():
    model, (x,) = mlp(6, 8, 3), vectors(16)
    twin = copy.deepcopy(model)
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    state = handle.state_dict()
    twin.load_state_dict(model.state_dict())
    packed = copy.deepcopy(twin)
    resumed = resume_fake_quantization(twin, state)
    assert torch.equal(twin(x), model(x))
    assert resumed.ranges == RANGES
    pack_finetuned(packed, state)
    assert torch.equal(packed(x), model(x))
    resumed.restore()
    assert type(twin[0]).__name__ == "Linear"
    assert not twin[0]._forward_pre_hooks


def test_ranges_are_asked_for():
    with pytest.raises(ValueError, match="The range of the inputs of '0' .6-bit inputs. is not known"):
        fake_quantize(mlp(6, 8, 3), POLICY)
