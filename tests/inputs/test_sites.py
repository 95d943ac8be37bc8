"""Which inputs can be quantized, and layers that compute with others for a while."""

import pytest
import torch
from helpers.networks import convnet, images, mlp, vectors
from helpers.wrapped_layers import SamePadding
from torch import nn

from lightning_mpq.inputs.quantizer import quantize_inputs, range_between
from lightning_mpq.inputs.sites import input_sites, inputs_changed, inputs_quantized, refusal
from lightning_mpq.schemes import InputScheme


def test_sites_are_layers_that_are_called():
    encoder = nn.TransformerEncoderLayer(8, 2, 16)
    model = nn.Sequential(nn.Embedding(4, 8), encoder, nn.LSTM(8, 8), SamePadding(3, 4, 3), nn.ConvTranspose2d(3, 3, 2))
    assert list(input_sites(model)) == ["1.linear1", "1.linear2", "4"]


def test_says_why_inputs_cannot_be_quantized():
    model = nn.Sequential(nn.Embedding(4, 8), nn.Conv1d(8, 8, 1))
    sites, layers = input_sites(model), dict(model.named_modules())
    assert "of type Embedding here" in refusal("0", layers["0"], sites, InputScheme(8))
    assert "no tokens" in refusal("1", layers["1"], sites, InputScheme(8, "token"))
    assert refusal("1", layers["1"], sites, InputScheme(8)) is None


def test_layers_compute_with_changed_inputs_for_a_while():
    model, (x,) = convnet().eval(), images(2)
    before = model(x)
    with inputs_changed({"head": model.head}, lambda name, given: torch.zeros_like(given)):
        assert torch.equal(model(x), model.head.bias.expand(2, -1))
        assert torch.equal(model.head(input=torch.ones(1, 64)), model.head.bias[None])
    assert torch.equal(model(x), before)


def test_whole_numbers_are_left_alone():
    model = mlp(6, 3).double()
    with inputs_changed(dict(model.named_children()), lambda name, given: given * 0), pytest.raises(RuntimeError):
        model(vectors(2)[0].long())


def test_layers_compute_with_quantized_inputs_for_a_while():
    model, (x,) = mlp(6, 8, 3), vectors(4)
    schemes = {"0": InputScheme(4), "2": InputScheme(4, "token")}
    layers = {name: model.get_submodule(name) for name in schemes}
    found = range_between(-2, 2, schemes["0"])
    with inputs_quantized(layers, schemes, {"0": found}):
        rounded = model(x)
    hidden = torch.tanh(model[0](quantize_inputs(x, schemes["0"], *found.tensors())))
    torch.testing.assert_close(rounded, model[2](quantize_inputs(hidden, schemes["2"])))
