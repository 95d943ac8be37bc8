"""A packed layer is the float layer that holds the dequantized weight, whatever is done to it."""

import copy
import io
import pickle

import pytest
import torch
from helpers.layers import LAYER_CASES, LAYER_SCHEMES, packed_and_oracle
from helpers.numbers import assert_agree
from helpers.schemes import grids_with
from torch import nn

from lightning_mpq.modules import PACKED_TYPES, PackedLayer, pack_layer
from lightning_mpq.modules.packed import packed_type
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.quantizers import QuantizedRows, quantize_rows
from lightning_mpq.schemes import WeightScheme


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4, 5])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", LAYER_CASES)
def test_equals_the_float_layer_with_dequantized_weights(kind, bits, granularity):
    for grid in grids_with(bits):
        scheme = WeightScheme(bits, granularity, grid)
        packed, oracle, inputs = packed_and_oracle(kind, scheme)
        assert torch.equal(packed.weight, oracle.weight)
        assert_agree(packed(inputs), oracle(inputs))
        assert packed.stored_bytes * 8 == scheme.stored_bits(*packed.row_shape)
        assert f"{scheme}, {packed.stored_bytes} bytes" in repr(packed)
        assert not any(name.endswith("weight") for name, _ in packed.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", LAYER_CASES)
def test_computes_in_the_type_of_the_module(kind, dtype):
    for scheme in LAYER_SCHEMES:
        packed, oracle, inputs = packed_and_oracle(kind, scheme, dtype)
        assert packed.weight.dtype == dtype
        assert_agree(packed(inputs), oracle(inputs))


@pytest.mark.parametrize("scheme", LAYER_SCHEMES, ids=str)
@pytest.mark.parametrize("kind", LAYER_CASES)
def test_casts_change_the_computed_type_and_never_the_stored_one(kind, scheme):
    packed, oracle, inputs = packed_and_oracle(kind, scheme)
    quantized = packed.quantized_rows()
    stored = {name: value.clone() for name, value in packed.stored_tensors().items()}
    for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32):
        packed.to(dtype), oracle.to(dtype)  # rounds the bias of both
        oracle.weight.data = rows_to_weight(oracle, quantized.dequantize(dtype), oracle.weight.shape).clone()
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        assert packed.weight_dtype == dtype
        assert_agree(packed(inputs), oracle(inputs))
        for name, value in packed.stored_tensors().items():
            assert value.dtype == stored[name].dtype
            assert torch.equal(value, stored[name])
    assert packed.type(torch.float64).packed_codes.dtype == torch.uint8  # type() casts integers too
    assert packed.to("meta").weight.is_meta


def test_a_block_longer_than_a_row_costs_no_memory():
    quantized = quantize_rows(torch.randn(5, 13), WeightScheme(4))
    longer = QuantizedRows(quantized.codes, quantized.scale, None, WeightScheme(4, granularity=10**15))
    packed = pack_layer(nn.Linear(13, 5), longer)
    assert torch.equal(packed.weight, quantized.dequantize())


def test_16_bit_scales_make_the_products_exact():
    scheme = WeightScheme(8, "channel", "half", scale_dtype="float16")
    packed = packed_and_oracle("linear", scheme)[0]
    exact = packed.scale.double() * (packed.codes().double() - 127.5)
    assert torch.equal(packed.weight.double(), exact)


@pytest.mark.parametrize("scheme", LAYER_SCHEMES, ids=str)
@pytest.mark.parametrize("kind", LAYER_CASES)
def test_survives_copy_pickle_and_state_dict(kind, scheme):
    packed, oracle, inputs = packed_and_oracle(kind, scheme)
    expected = oracle(inputs)
    assert_agree(copy.deepcopy(packed)(inputs), expected)
    assert_agree(pickle.loads(pickle.dumps(packed))(inputs), expected)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    blank = copy.deepcopy(packed)
    for value in blank.state_dict().values():
        value.zero_()
    blank.load_state_dict(torch.load(file, weights_only=True))
    assert_agree(blank(inputs), expected)


@pytest.mark.parametrize("kind", [kind for kind in LAYER_CASES if not kind.startswith("embedding")])
def test_gradients_flow_to_inputs_and_bias(kind):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[0])
    if oracle.bias is not None:
        oracle.bias = nn.Parameter(oracle.bias.detach().clone())
    grads = []
    for layer in (packed, oracle):
        leaf = inputs.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        grads.append((leaf.grad, None if layer.bias is None else layer.bias.grad))
    assert_agree(grads[0][0], grads[1][0])
    if oracle.bias is not None:
        assert_agree(grads[0][1], grads[1][1])


@pytest.mark.parametrize("kind", LAYER_CASES)
def test_fast_memory_keeps_the_weight_and_states_its_bytes(kind):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[0])
    keys = set(packed.state_dict())
    packed.memory = "fast"
    assert packed.cached_bytes == oracle.weight.numel() * 4
    assert f"{packed.cached_bytes} bytes cached" in repr(packed)
    assert packed.weight.data_ptr() == packed.weight.data_ptr()
    assert set(packed.state_dict()) == keys
    assert_agree(packed(inputs), oracle(inputs))
    assert packed.double().weight.dtype == torch.float64  # the cache follows a cast
    packed.float().load_state_dict({k: v.zero_() for k, v in copy.deepcopy(packed).state_dict().items()})
    assert not packed.weight.any()  # and a load
    packed.memory = "packed"
    assert packed.cached_bytes == 0
    assert packed.dense_weight is None
    with pytest.raises(ValueError, match="'packed', 'fast', got 'slow'"):
        packed.memory = "slow"


def test_keeps_mode_bias_attributes_and_hooks():
    layer = nn.Linear(6, 4).eval()
    layer.note = "kept"
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    layer.compile(backend="eager")
    packed = pack_layer(layer, quantize_rows(weight_rows(layer), WeightScheme(4)))
    packed(torch.randn(1, 6))
    assert seen == ["hook"]
    assert isinstance(packed, nn.Linear)
    assert isinstance(packed, PackedLayer)
    assert (packed.training, packed.note, packed.in_features) == (False, "kept", 6)
    assert packed.bias is layer.bias
    assert packed._compiled_call_impl is None  # it would run the float layer
    assert "weight" in layer._parameters
    assert "packed_codes" not in layer._buffers


def test_the_weight_is_read_only():
    packed = packed_and_oracle("linear", LAYER_SCHEMES[0])[0]
    with pytest.raises((AttributeError, KeyError)):
        packed.weight = torch.zeros(5, 13)
    with pytest.raises((AttributeError, KeyError)):
        packed.weight = nn.Parameter(torch.zeros(5, 13))
    with pytest.raises(TypeError, match="cannot be initialised anew"):
        packed.reset_parameters()


def test_a_state_dict_of_other_types_or_of_the_float_layer_is_refused():
    packed = packed_and_oracle("linear", LAYER_SCHEMES[0])[0]
    before = copy.deepcopy(packed.state_dict())
    half = {k: v.half() if v.is_floating_point() else v for k, v in before.items()}
    with pytest.raises(RuntimeError, match="scale must be torch.bfloat16, got torch.float16"):
        packed.load_state_dict(half)
    with pytest.raises(RuntimeError, match="packed_codes"):
        packed.load_state_dict(nn.Linear(13, 5).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for packed_codes"):
        packed.load_state_dict(packed_and_oracle("linear", WeightScheme(4, "channel", "half"))[0].state_dict())


def test_a_rounded_weight_of_another_shape_is_refused():
    quantized = quantize_rows(torch.randn(5, 12), WeightScheme(4))
    with pytest.raises(ValueError, match=r"shape \[5, 13\].*got \[5, 12\]"):
        pack_layer(nn.Linear(13, 5), quantized)


def test_every_quantizable_type_has_a_packed_one():
    from lightning_mpq.network.layer_kinds import LAYER_KINDS

    registered = {kind for kind in LAYER_KINDS if not kind.__module__.startswith(("torch.", "lightning_mpq."))}
    made_when_needed = {nn.Bilinear} | registered  # other tests of this process may have registered some
    assert issubclass(packed_type(nn.Bilinear(2, 3, 4)), nn.Bilinear)
    assert set(PACKED_TYPES) - made_when_needed == set(LAYER_KINDS) - made_when_needed
    for kind in set(LAYER_KINDS) - made_when_needed:
        order = [base for base in PACKED_TYPES[kind].__mro__ if base in (PackedLayer, kind)]
        assert order == [PackedLayer, kind]


def test_quantized_rows_come_back_as_they_went_in():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    before = quantize_rows(weight_rows(layer), LAYER_SCHEMES[1])
    after = pack_layer(layer, before).quantized_rows()
    assert isinstance(after, QuantizedRows)
    for name in ("codes", "scale", "zero_point"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert after.scheme == before.scheme
