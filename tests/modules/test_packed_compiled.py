"""Packed layers compiled, exported, under autocast, on a GPU and in attention compute what they do by themselves."""

import copy
from shutil import which

import pytest
import torch
from helpers.layers import LAYER_CASES, LAYER_SCHEMES, assert_exports_and_compiles, packed_and_oracle
from helpers.numbers import assert_agree
from torch import nn

from lightning_mpq.modules import pack_layer, pack_model
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [(kind, LAYER_SCHEMES[i % 3]) for i, kind in enumerate(LAYER_CASES)]
    + [("linear", LAYER_SCHEMES[1]), ("linear", LAYER_SCHEMES[2])],
    ids=str,
)
def test_exports_strict_and_not_and_traces_whole(kind, scheme):
    packed, _, inputs = packed_and_oracle(kind, scheme)
    expected = packed(inputs)
    assert_exports_and_compiles(packed, inputs, expected)


@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding-byte-rows"])
def test_exports_with_a_dynamic_batch(kind):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[1])
    batch = {0: torch.export.Dim("batch", min=2, max=64)}
    program = torch.export.export(packed, (inputs,), dynamic_shapes=(batch,), strict=True)
    larger = torch.cat([inputs, inputs, inputs])
    torch.testing.assert_close(program.module()(larger), oracle(larger))


@pytest.mark.skipif(which("g++") is None, reason="the default backend compiles C++")
def test_compiles_with_the_default_backend():
    table, _, inputs = packed_and_oracle("embedding-byte-rows", LAYER_SCHEMES[0])
    linear = nn.Linear(16, 3)
    model = nn.Sequential(table, pack_layer(linear, quantize_rows(weight_rows(linear), LAYER_SCHEMES[1])))
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(inputs), model(inputs))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv-transpose1d"])
def test_autocast_treats_the_weight_as_any_other(kind):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[0])
    with torch.autocast("cpu", torch.bfloat16):
        output = packed(inputs)
        assert output.dtype == torch.bfloat16
        assert_agree(output, oracle(inputs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scheme", LAYER_SCHEMES, ids=str)
@pytest.mark.parametrize("kind", LAYER_CASES)
def test_on_a_gpu(kind, scheme):
    packed, oracle, inputs = (part.cuda() for part in packed_and_oracle(kind, scheme))
    assert torch.equal(packed.weight, oracle.weight)
    torch.testing.assert_close(packed(inputs), oracle(inputs))
    assert torch.equal(packed.cpu().weight, oracle.weight.cpu())


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
    assert_agree(block(inputs), oracle(inputs))
    with torch.no_grad():
        assert_agree(block(inputs), oracle(inputs))


@pytest.mark.filterwarnings("ignore")
def test_what_torch_itself_exports_is_loaded_by_onnxruntime(tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    torch.manual_seed(0)
    widths = range(2, 9)
    net = nn.Sequential(nn.Embedding(11, 8), *(nn.Linear(8, 8) for _ in widths)).eval()
    schemes = {str(bits - 1): WeightScheme(bits, "channel", ("half", "asymmetric")[bits % 2]) for bits in widths}
    pack_model(net, BitPolicy({"0": WeightScheme(3), **schemes}))
    indices = torch.tensor([[0, 3, 10], [1, 1, 5]])
    torch.onnx.export(net, (indices,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: indices.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(indices).detach(), rtol=1e-5, atol=1e-6)
