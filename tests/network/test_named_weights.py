"""Weights that a module keeps under names of its own: how they are found, and how a tensor stands in for one."""

import pytest
import torch
from helpers.named_weights import Gated, make
from torch import nn

from lightning_mpq.modules import PackedWeight, pack_model
from lightning_mpq.network.layer_kinds import LAYER_KINDS, ParameterView, weight_rows
from lightning_mpq.network.named_weights import held_by, named_layers, register_layer, standing_in
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


def test_views_name_the_module_that_holds_the_parameter_and_see_rows_as_it_says():
    model, x = make("gated")
    layers = named_layers(model)
    view = layers["1.gate"]
    assert isinstance(view, ParameterView)
    assert held_by(view) == (model[1], "gate")
    assert held_by(layers["0"]) == (model[0], "weight")
    assert torch.equal(weight_rows(view), model[1].gate.T)
    expected = (model[0](x) @ model[1].value) / 2
    with standing_in(view, torch.zeros_like(view.weight)):
        torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(model(x), expected)


def test_a_tensor_stands_in_for_a_recurrent_weight_and_leaves_no_trace():
    model, x = make("lstm")
    before = dict(model.__dict__)
    view = named_layers(model)["weight_ih_l0"]
    expected = model(x)[0]
    with standing_in(view, torch.zeros_like(view.weight)):
        assert not torch.allclose(model(x)[0], expected)
    assert model.__dict__ == before
    assert torch.equal(model(x)[0], expected)


def test_registering_refuses_what_it_cannot_serve():
    with pytest.raises(TypeError, match="known already"):
        register_layer(nn.Linear)
    with pytest.raises(TypeError, match="subclass of nn.Module"):
        register_layer(torch.relu)
    with pytest.raises(ValueError, match="at least one parameter"):
        register_layer(Gated, [])

    class Own(nn.Linear):
        def forward(self, x):
            return x @ self.weight.T if x.sum() > 0 else x

    register_layer(Own)
    with pytest.raises(ValueError, match="like must be one of"):
        register_layer(Own, like=nn.ReLU)
    with pytest.raises(TypeError, match="output_dim must be the number of a dimension, got 'rows'"):
        register_layer(Own, output_dim="rows")
    assert Own in LAYER_KINDS  # what was registered before still is


def test_a_registered_layer_is_packed_as_itself_where_its_weight_is_called_weight():
    model, _ = make("twisted")
    pack_model(model, BitPolicy({"1": WeightScheme(3)}))
    assert type(model[1]).__name__ == "PackedTwisted"
    assert not isinstance(model[1], PackedWeight)
