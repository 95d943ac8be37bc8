"""Weights that a module keeps under names of its own: attention, recurrent and registered layers, packed."""

import copy
import io

import pytest
import torch
from torch import nn

from lightning_mpq.modules import (
    PackedWeight,
    empty_packed_model,
    pack_model,
    packed_layers,
    policy_of,
    restore_layers,
    set_memory,
    stored_bytes,
)
from lightning_mpq.network.layer_kinds import ParameterView, weight_rows
from lightning_mpq.network.named_weights import held_by, named_layers, register_layer, standing_in
from lightning_mpq.policy import BitPolicy, WeightScheme

SCHEME = WeightScheme(3, "channel", "half")


class Gated(nn.Module):
    """Two weights, neither called ``weight``; output channels of both along dimension 1."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(6, 5))
        self.gate = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return (x @ self.value) * (x @ self.gate).sigmoid()


class Twisted(nn.Module):
    """One weight called ``weight``, read by a forward of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x.roll(1, -1) @ self.weight.T + self.offset


@pytest.fixture(autouse=True)
def registered():
    register_layer(Gated, ["value", "gate"], linear=False, output_dim=1)
    register_layer(Twisted)


class CrossAttention(nn.Module):
    """Attention to keys and values of other widths, so that the three projections are weights of their own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5)

    def forward(self, x):
        return self.attention(x, x[..., :6], x[..., :5], need_weights=False)[0]


CASES = {
    "attention": (CrossAttention, (3, 2, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (2, 3, 8)),
    "norm-first": (lambda: nn.TransformerEncoderLayer(8, 2, 12, norm_first=True, bias=False), (3, 2, 8)),
    "stack": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), (2, 3, 8)),
    "lstm": (lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3), (3, 2, 8)),
    "gru": (lambda: nn.GRU(8, 5, batch_first=True), (3, 2, 8)),
    "rnn": (lambda: nn.RNN(8, 5, bias=False), (3, 2, 8)),
    "cell": (lambda: nn.LSTMCell(8, 5), (3, 8)),
    "gated": (lambda: nn.Sequential(nn.Linear(8, 6), Gated()), (3, 8)),
    "twisted": (lambda: nn.Sequential(nn.Linear(8, 6), Twisted()), (3, 8)),
}


def weights_of(model):
    """Return name -> layer for every weight with two dimensions."""
    layers = named_layers(model)
    return {
        n: m for n, m in layers.items() if isinstance(getattr(m, "weight", None), nn.Parameter) and m.weight.dim() > 1
    }


def make(case):
    torch.manual_seed(0)
    build, shape = CASES[case]
    return build().eval(), torch.randn(shape)


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


@torch.no_grad()
def with_dequantized_weights(model, packed):
    """Return a float copy of a model that holds the weights of its packed twin."""
    twin = copy.deepcopy(model)
    layers = packed_layers(packed)
    for name, layer in weights_of(twin).items():
        layer.weight.copy_(layers[name].weight)
    return twin


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("fast_path", [True, False])
@torch.no_grad()
def test_the_packed_module_computes_what_the_float_one_with_dequantized_weights_does(case, fast_path):
    model, x = make(case)
    names = list(weights_of(model))
    packed = copy.deepcopy(model)
    pack_model(packed, BitPolicy(dict.fromkeys(names, SCHEME)))
    assert set(packed_layers(packed)) == set(names)
    assert not any(p.dim() > 1 for p in packed.parameters())
    twin = with_dequantized_weights(model, packed)
    try:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.testing.assert_close(first(packed(x)), first(twin(x)), rtol=1e-6, atol=1e-6)
        set_memory(packed, "fast")
        torch.testing.assert_close(first(packed(x)), first(twin(x)), rtol=1e-6, atol=1e-6)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert not torch.allclose(first(packed(x)), first(model(x)), atol=1e-3)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_copies_pickles_and_state_dicts_of_packed_modules_compute_the_same(case):
    model, x = make(case)
    policy = BitPolicy(dict.fromkeys(weights_of(model), SCHEME))
    packed = copy.deepcopy(model)
    pack_model(packed, policy)
    expected = first(packed(x))
    file = io.BytesIO()
    torch.save(packed, file)
    file.seek(0)
    pickled = torch.load(file, weights_only=False)
    fresh = make(case)[0]
    empty_packed_model(fresh, policy)
    fresh.load_state_dict(packed.state_dict())
    for twin in (copy.deepcopy(packed), pickled, fresh):
        torch.testing.assert_close(first(twin(x)), expected, rtol=1e-6, atol=1e-6)
        assert policy_of(twin) == policy_of(packed) == policy
    assert stored_bytes(packed).packed == sum(layer.stored_bytes for layer in packed_layers(packed).values())


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_packed_modules_compile_and_export(case):
    model, x = make(case)
    pack_model(model, BitPolicy(dict.fromkeys(weights_of(model), SCHEME)))
    expected = first(model(x))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    exported = torch.export.export(model, (x,), strict=True).module()
    for found in (compiled, exported):
        torch.testing.assert_close(first(found(x)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_casts_of_packed_modules_change_no_stored_weight(case, dtype):
    model, x = make(case)
    pack_model(model, BitPolicy(dict.fromkeys(weights_of(model), SCHEME)))
    stored = {name: layer.codes() for name, layer in packed_layers(model).items()}
    twin = copy.deepcopy(model).to(dtype)
    assert first(twin(x.to(dtype))).dtype == dtype
    assert all(torch.equal(layer.codes(), stored[name]) for name, layer in packed_layers(twin).items())
    assert torch.equal(first(twin.float()(x)), first(with_rounded_floats(model, dtype)(x)))


def with_rounded_floats(model, dtype):
    """Return a copy whose float parameters went through a type, as those of a module that was cast and cast back."""
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.copy_(parameter.to(dtype))
    return twin


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_restoring_brings_back_the_same_parameters_types_and_order(case):
    model, x = make(case)
    before, expected, kind = list(model.named_parameters()), first(model(x)), type(model)
    keys = list(model.state_dict())
    floats = pack_model(model, BitPolicy(dict.fromkeys(weights_of(model), SCHEME)))
    model(x)
    restore_layers(model, floats)
    assert [(n, id(p)) for n, p in model.named_parameters()] == [(n, id(p)) for n, p in before]
    assert list(model.state_dict()) == keys
    assert type(model) is kind
    assert torch.equal(first(model(x)), expected)


@torch.no_grad()
def test_one_weight_of_a_module_may_be_packed_and_its_types_cast():
    model, x = make("lstm")
    pack_model(model, BitPolicy({"weight_hh_l1": SCHEME}))
    assert list(packed_layers(model)) == ["weight_hh_l1"]
    assert isinstance(model, nn.LSTM)
    assert isinstance(model.get_parameter("weight_ih_l0"), nn.Parameter)
    expected = model(x)[0]
    model.double()
    assert model.weight_hh_l1.dtype == torch.float64
    assert torch.allclose(model(x.double())[0].float(), expected, atol=1e-5)


def test_a_failing_policy_leaves_the_module_as_it_was():
    model, _ = make("gru")
    with pytest.raises(ValueError, match="weight_hh_l7"):
        pack_model(model, BitPolicy({"weight_ih_l0": SCHEME, "weight_hh_l7": SCHEME}))
    assert type(model) is nn.GRU
    assert not packed_layers(model)


def test_no_dequantized_weight_outlives_a_call_of_a_recurrent_layer():
    model, x = make("lstm")
    pack_model(model, BitPolicy(dict.fromkeys(weights_of(model), SCHEME)))
    model(x)
    assert model._flat_weights == []


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
        assert torch.allclose(model(x), expected)
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
    model, _ = make("twisted")
    pack_model(model, BitPolicy({"1": SCHEME}))
    assert type(model[1]).__name__ == "PackedTwisted"
    assert not isinstance(model[1], PackedWeight)
