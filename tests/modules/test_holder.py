"""Weights that a module keeps under names of its own: attention, recurrent and registered layers, packed."""

import copy
import io

import pytest
import torch
from helpers.named_weights import CASES, first, make, weights_of
from torch import nn

from lightning_mpq.modules import (
    empty_packed_model,
    pack_model,
    packed_layers,
    policy_of,
    restore_layers,
    set_memory,
    stored_bytes,
)
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

SCHEME = WeightScheme(3, "channel", "half")


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.Embedding(4, 4), nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)])
def test_torchscript_is_refused_in_a_sentence_that_names_the_ways(model):
    from lightning_mpq.groups.groups import find_groups

    whole = nn.Sequential(model)
    pack_model(whole, BitPolicy({group.name: WeightScheme(4) for group in find_groups(whole)}))
    with pytest.raises(NotImplementedError, match=r"torch.jit.script cannot compile. torch.jit.trace\(model, inputs\)"):
        torch.jit.script(whole)
