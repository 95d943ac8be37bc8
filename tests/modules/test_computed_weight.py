"""Writes to the weight of a packed layer are refused, by any name; everything else works as on a tensor."""

import copy
import io

import pytest
import torch
from helpers.layers import LAYER_CASES, LAYER_SCHEMES, packed_and_oracle
from torch import nn

from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

REFUSED = "computed from its codes .* would be lost"


def add_to_data(weight):
    weight.data += 1


def assign_data(weight):
    weight.data = torch.zeros_like(weight)


def assign_rows(weight):
    weight[0] = 0


WRITES = {
    "data +=": add_to_data,
    "data =": assign_data,
    "[0] =": assign_rows,
    "mul_": lambda weight: weight.mul_(2),
    "copy_": lambda weight: weight.copy_(torch.zeros_like(weight)),
    "clamp_": lambda weight: weight.clamp_(-0.1, 0.1),
    "row": lambda weight: weight[0].zero_(),
    "detached": lambda weight: weight.detach().flatten().fill_(0),
    "init": lambda weight: nn.init.zeros_(weight),
    "init by a distribution": lambda weight: nn.init.kaiming_uniform_(weight),
    "out": lambda weight: torch.add(weight, 1, out=weight),
    "foreach": lambda weight: torch._foreach_mul_([weight], 2.0),
    "inplace": lambda weight: nn.functional.relu(weight, inplace=True),
}


def packed_modules(memory: str):
    """Return a Linear layer, attention and an LSTM, all of them packed, with one weight each by name."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.LSTM(4, 4)])
    names = ["0", "1.in_proj_weight", "1.out_proj", "2.weight_hh_l0"]
    pack_model(model, BitPolicy(dict.fromkeys(names, WeightScheme(bits=4))))
    for module in model.modules():
        if hasattr(module, "packed_codes"):
            module.memory = memory
    return [
        (model[0], "weight"),
        (model[1], "in_proj_weight"),
        (model[1].out_proj, "weight"),
        (model[2], "weight_hh_l0"),
    ]


@pytest.mark.parametrize("memory", ["packed", "fast"])
@pytest.mark.parametrize("write", WRITES.values(), ids=list(WRITES))
def test_a_write_is_refused_and_says_what_to_do(write, memory):
    for module, name in packed_modules(memory):
        before = getattr(module, name).clone()
        with torch.no_grad(), pytest.raises(RuntimeError, match=REFUSED):
            write(getattr(module, name))
        assert torch.equal(getattr(module, name), before)


def test_a_copy_is_an_ordinary_tensor():
    layer, _ = packed_modules("packed")[0]
    for made in (layer.weight.clone(), layer.weight + 0, layer.weight.double(), copy.deepcopy(layer.weight)):
        assert type(made) is torch.Tensor
        made.zero_()
    sums = torch.zeros(4, 4)
    sums.add_(layer.weight)  # reading it is no write
    assert torch.equal(sums, layer.weight)
    parameter = nn.Parameter(layer.weight)
    parameter.data.zero_()
    assert type(parameter) is nn.Parameter
    assert not torch.equal(layer.weight, parameter)
    file = io.BytesIO()
    torch.save(layer.weight, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True), layer.weight)
    assert repr(layer.weight).startswith("tensor(")


@pytest.mark.parametrize("kind", LAYER_CASES)
def test_outputs_and_gradients_are_ordinary_tensors(kind):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[0])
    inputs = inputs.requires_grad_() if inputs.is_floating_point() else inputs
    outputs = packed(inputs)
    assert type(outputs) is torch.Tensor
    torch.testing.assert_close(outputs, oracle(inputs))
    if inputs.is_floating_point():
        (gradient,) = torch.autograd.grad(outputs.square().sum(), inputs)
        assert type(gradient) is torch.Tensor
