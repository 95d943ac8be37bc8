"""A packed layer is the float layer that holds the dequantized weight, whatever is done to it."""

import copy
import io
import pickle
from shutil import which

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_cases import LAYER_CASES
from torch import nn

from lightning_mpq.modules import PACKED_TYPES, PackedLayer, pack_layer
from lightning_mpq.modules.packed import packed_type
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.policy import GRIDS, WeightScheme
from lightning_mpq.quantizers import QuantizedRows, quantize_rows

KINDS = list(LAYER_CASES)
SCHEMES = [
    WeightScheme(3, "channel", "half"),
    WeightScheme(5, 4, "asymmetric", scale_dtype="float16"),
    WeightScheme(8, "tensor", "symmetric", scale_dtype="float32"),
]


def make(kind, scheme, dtype=torch.float32):
    """Return a packed layer, its oracle (the float layer with dequantized weights), and an input."""
    torch.manual_seed(0)
    layer = LAYER_CASES[kind][0]().to(dtype)
    inputs = LAYER_CASES[kind][1]()
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    quantized = quantize_rows(weight_rows(layer), scheme)
    packed = pack_layer(layer, quantized)
    oracle = copy.deepcopy(layer)
    weight = rows_to_weight(oracle, quantized.dequantize(dtype), oracle.weight.shape)
    oracle.weight.data = weight.clone()
    return packed, oracle, inputs


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4, 5])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_float_layer_with_dequantized_weights(kind, bits, granularity):
    for grid in GRIDS:
        scheme = WeightScheme(bits, granularity, grid)
        packed, oracle, inputs = make(kind, scheme)
        assert torch.equal(packed.weight, oracle.weight)
        assert torch.equal(packed(inputs), oracle(inputs))
        assert packed.stored_bytes * 8 == scheme.stored_bits(*packed.row_shape)
        assert f"{scheme}, {packed.stored_bytes} bytes" in repr(packed)
        assert not any(name.endswith("weight") for name, _ in packed.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_computes_in_the_type_of_the_module(kind, dtype):
    for scheme in SCHEMES:
        packed, oracle, inputs = make(kind, scheme, dtype)
        assert packed.weight.dtype == dtype
        assert torch.equal(packed(inputs), oracle(inputs))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_casts_change_the_computed_type_and_never_the_stored_one(kind, scheme):
    packed, oracle, inputs = make(kind, scheme)
    quantized = packed.quantized_rows()
    stored = {name: value.clone() for name, value in packed.stored_tensors().items()}
    for dtype in (torch.float16, torch.float64, torch.bfloat16, torch.float32):
        packed.to(dtype), oracle.to(dtype)  # rounds the bias of both
        oracle.weight.data = rows_to_weight(oracle, quantized.dequantize(dtype), oracle.weight.shape).clone()
        inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
        assert packed.weight_dtype == dtype
        assert torch.equal(packed(inputs), oracle(inputs))
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
    packed = make("linear", scheme)[0]
    exact = packed.scale.double() * (packed.codes().double() - 127.5)
    assert torch.equal(packed.weight.double(), exact)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_survives_copy_pickle_and_state_dict(kind, scheme):
    packed, oracle, inputs = make(kind, scheme)
    expected = oracle(inputs)
    assert torch.equal(copy.deepcopy(packed)(inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(packed))(inputs), expected)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    blank = copy.deepcopy(packed)
    for value in blank.state_dict().values():
        value.zero_()
    blank.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(blank(inputs), expected)


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [(kind, SCHEMES[i % 3]) for i, kind in enumerate(KINDS)] + [("linear", SCHEMES[1]), ("linear", SCHEMES[2])],
    ids=str,
)
def test_exports_strict_and_not_and_traces_whole(kind, scheme):
    packed, _, inputs = make(kind, scheme)
    expected = packed(inputs)
    for strict in (True, False):
        program = torch.export.export(packed, (inputs,), strict=strict)
        torch.testing.assert_close(program.module()(inputs), expected, rtol=0, atol=0)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(packed, fullgraph=True, backend="aot_eager")(inputs), expected)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding-byte-rows"])
def test_exports_with_a_dynamic_batch(kind):
    packed, oracle, inputs = make(kind, SCHEMES[1])
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(packed, (inputs,), dynamic_shapes=(batch,), strict=True)
    larger = torch.cat([inputs, inputs, inputs])
    torch.testing.assert_close(program.module()(larger), oracle(larger))


@pytest.mark.skipif(which("g++") is None, reason="the default backend compiles C++")
def test_compiles_with_the_default_backend():
    table, _, inputs = make("embedding-byte-rows", SCHEMES[0])
    linear = nn.Linear(16, 3)
    model = nn.Sequential(table, pack_layer(linear, quantize_rows(weight_rows(linear), SCHEMES[1])))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(inputs), model(inputs))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv-transpose1d"])
def test_autocast_treats_the_weight_as_any_other(kind):
    packed, oracle, inputs = make(kind, SCHEMES[0])
    with torch.autocast("cpu", torch.bfloat16):
        output = packed(inputs)
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, oracle(inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind, scheme):
    packed, oracle, inputs = (part.cuda() for part in make(kind, scheme))
    assert torch.equal(packed.weight, oracle.weight)
    torch.testing.assert_close(packed(inputs), oracle(inputs))
    assert torch.equal(packed.cpu().weight, oracle.weight.cpu())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("embedding")])
def test_gradients_flow_to_inputs_and_bias(kind):
    packed, oracle, inputs = make(kind, SCHEMES[0])
    if oracle.bias is not None:
        oracle.bias = nn.Parameter(oracle.bias.detach().clone())
    grads = []
    for layer in (packed, oracle):
        leaf = inputs.clone().requires_grad_()
        layer(leaf).square().sum().backward()
        grads.append((leaf.grad, None if layer.bias is None else layer.bias.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert grads[0][1] is None or torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_fast_memory_keeps_the_weight_and_states_its_bytes(kind):
    packed, oracle, inputs = make(kind, SCHEMES[0])
    keys = set(packed.state_dict())
    packed.memory = "fast"
    assert packed.cached_bytes == oracle.weight.numel() * 4
    assert f"{packed.cached_bytes} bytes cached" in repr(packed)
    assert packed.weight is packed.weight
    assert set(packed.state_dict()) == keys
    assert torch.equal(packed(inputs), oracle(inputs))
    assert packed.double().weight.dtype == torch.float64  # the cache follows a cast
    packed.float().load_state_dict({k: v.zero_() for k, v in copy.deepcopy(packed).state_dict().items()})
    assert not packed.weight.any()  # and a load
    packed.memory = "packed"
    assert packed.cached_bytes == 0
    assert packed.dense_weight is None
    with pytest.raises(ValueError, match="'packed' or 'fast', got 'slow'"):
        packed.memory = "slow"


def test_a_lookup_touches_only_its_own_rows():
    packed, oracle, _ = make("embedding-byte-rows", WeightScheme(2, "channel", "half"))
    assert packed.gathers_rows
    packed.packed_codes[4:] = 255  # rows of 16 columns at 2 bits are 4 bytes: everything but row 0
    assert torch.equal(packed(torch.tensor(0)), oracle(torch.tensor(0)))
    assert not torch.equal(packed(torch.tensor(1)), oracle(torch.tensor(1)))
    with pytest.raises(IndexError):
        packed(torch.tensor([9]))
    assert not make("embedding", WeightScheme(3))[0].gathers_rows
    assert not make("embedding-max-norm", WeightScheme(3))[0].gathers_rows


@given(
    rows=st.integers(1, 20),
    columns=st.integers(1, 24),
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel", 1, 5, 8]),
    grid=st.sampled_from(GRIDS),
    shape=st.sampled_from([(), (0,), (1,), (3, 2)]),
    index_type=st.sampled_from([torch.int32, torch.int64]),
)
@settings(deadline=None, max_examples=150)
def test_a_lookup_equals_the_table_for_any_size(rows, columns, bits, granularity, grid, shape, index_type):
    torch.manual_seed(rows * columns)
    scheme = WeightScheme(bits, granularity, grid)
    table = nn.Embedding(rows, columns)
    quantized = quantize_rows(table.weight.detach(), scheme)
    packed = pack_layer(table, quantized)
    assert packed.gathers_rows == (columns * bits % 8 == 0)
    indices = torch.randint(0, rows, shape, dtype=index_type)
    assert torch.equal(packed(indices), quantized.dequantize()[indices.long()])


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
    packed = make("linear", SCHEMES[0])[0]
    with pytest.raises((AttributeError, KeyError)):
        packed.weight = torch.zeros(5, 13)
    with pytest.raises((AttributeError, KeyError)):
        packed.weight = nn.Parameter(torch.zeros(5, 13))
    with pytest.raises(TypeError, match="cannot be initialised anew"):
        packed.reset_parameters()


def test_a_state_dict_of_other_types_or_of_the_float_layer_is_refused():
    packed = make("linear", SCHEMES[0])[0]
    before = copy.deepcopy(packed.state_dict())
    half = {k: v.half() if v.is_floating_point() else v for k, v in before.items()}
    with pytest.raises(RuntimeError, match="scale must be torch.bfloat16, got torch.float16"):
        packed.load_state_dict(half)
    with pytest.raises(RuntimeError, match="packed_codes"):
        packed.load_state_dict(nn.Linear(13, 5).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for packed_codes"):
        packed.load_state_dict(make("linear", WeightScheme(4, "channel", "half"))[0].state_dict())


def test_multihead_attention_and_the_transformer_fast_path_read_the_weight():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    oracle = copy.deepcopy(block)
    for owner, name in ((block, "linear1"), (block, "linear2"), (block.self_attn, "out_proj")):
        layer = getattr(owner, name)
        quantized = quantize_rows(weight_rows(layer), WeightScheme(4))
        setattr(owner, name, pack_layer(layer, quantized))
        twin = oracle.self_attn if owner is block.self_attn else oracle
        getattr(twin, name).weight.data = quantized.dequantize()
    inputs = torch.randn(2, 3, 8)
    assert torch.equal(block(inputs), oracle(inputs))
    with torch.no_grad():
        assert torch.equal(block(inputs), oracle(inputs))


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
        assert PACKED_TYPES[kind].__mro__[1:3] == (PackedLayer, kind)


def test_quantized_rows_come_back_as_they_went_in():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3)
    before = quantize_rows(weight_rows(layer), SCHEMES[1])
    after = pack_layer(layer, before).quantized_rows()
    assert isinstance(after, QuantizedRows)
    for name in ("codes", "scale", "zero_point"):
        assert torch.equal(getattr(before, name), getattr(after, name))
    assert after.scheme == before.scheme
