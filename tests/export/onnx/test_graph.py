"""Each layout, width, grid and granularity, computed by onnxruntime from the codes: the same weight to the last bit."""

import sys
from itertools import cycle, product
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
ir = pytest.importorskip("onnx_ir", reason="needs the extra onnx")

sys.path.append(str(Path(__file__).parents[2] / "modules"))
from helpers.layers import LAYER_CASES  # noqa: E402

from lightning_mpq.export.float_twins import layer_groups, to_weight  # noqa: E402
from lightning_mpq.export.onnx.containers import hold  # noqa: E402
from lightning_mpq.export.onnx.graph import put_weight_in, take_weight_out  # noqa: E402
from lightning_mpq.grids.registry import DEFAULT_GRIDS  # noqa: E402
from lightning_mpq.modules import pack_model  # noqa: E402
from lightning_mpq.policy import BitPolicy  # noqa: E402
from lightning_mpq.quantizers.padding_row import loses_padding_row  # noqa: E402
from lightning_mpq.schemes import WeightScheme  # noqa: E402


def packed(make, scheme):
    net = nn.Sequential(make())
    pack_model(net, BitPolicy({"0": scheme}))
    return net[0]


def graph_of(weight, operation=None, **attributes):
    """Return a graph whose output is the weight, or an operation on an input and the weight."""
    initializer = ir.val("weight", const_value=ir.tensor(weight.detach().clone()))
    given = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape(["n", weight.shape[1]]))
    node = ir.node("Identity", [initializer])
    nodes, inputs = [node], []
    if operation == "MatMul":
        transposed = ir.node("Transpose", [initializer], attributes={"perm": [1, 0]})
        nodes, inputs = [transposed, ir.node("MatMul", [given, transposed.outputs[0]])], [given]
    elif operation == "Gemm":
        nodes, inputs = [ir.node("Gemm", [given, initializer], attributes={"transB": 1})], [given]
    output = nodes[-1].outputs[0]
    output.name, output.dtype = "y", ir.DataType.FLOAT
    return ir.Graph(inputs, [output], nodes=nodes, initializers=[initializer], opset_imports={"": 25}, name="g")


def run(graph, layer, feeds=None, two_bits=True):
    place = take_weight_out(graph, "weight")
    held = hold(layer.quantized_rows(), multiplied=place.multiplied, two_bits=two_bits)
    put_weight_in(graph, place, held, lambda rows: to_weight(layer, rows), layer_groups(layer))
    content = ir.to_proto(ir.Model(graph, ir_version=13)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    [output] = session.run(None, feeds or {})
    return torch.as_tensor(output)


@pytest.mark.parametrize("kind", LAYER_CASES)
def test_a_dequantized_weight_is_the_packed_one(kind):
    torch.manual_seed(0)
    scale_dtypes = cycle(("bfloat16", "float16", "float32"))
    for bits, granularity, grid in product(range(2, 9), ("tensor", "channel", 3, 16), DEFAULT_GRIDS):
        scheme = WeightScheme(bits, granularity, grid, scale_dtype=next(scale_dtypes))
        if loses_padding_row(LAYER_CASES[kind][0](), scheme):
            continue
        layer = packed(LAYER_CASES[kind][0], scheme)
        found = run(graph_of(layer.weight), layer)
        if scheme.scale_dtype == "float32":  # whose halves round once more
            torch.testing.assert_close(found, layer.weight, rtol=1e-6, atol=0)
        else:
            assert torch.equal(found, layer.weight), scheme


@pytest.mark.parametrize("operation", ["MatMul", "Gemm"])
@pytest.mark.parametrize(("rows", "columns"), [(8, 32), (12, 33), (7, 40), (1, 5)])
def test_products_are_those_with_the_packed_weight(operation, rows, columns):
    """With 2 bits onnxruntime is right only for multiples of 4 rows; others must not get such a container."""
    torch.manual_seed(0)
    inputs = torch.randn(3, columns)
    for bits, granularity, grid in product(range(2, 9), ("tensor", "channel", 16, 24), DEFAULT_GRIDS):
        layer = packed(lambda: nn.Linear(columns, rows, bias=False), WeightScheme(bits, granularity, grid))
        graph = graph_of(layer.weight, operation)
        found = run(graph, layer, {"x": inputs.numpy()}, two_bits=rows % 4 == 0)
        torch.testing.assert_close(found, inputs @ layer.weight.T, rtol=1e-5, atol=1e-6)


def test_a_weight_in_half_precision_is_cast_last():
    layer = packed(lambda: nn.Conv1d(3, 5, 2).half(), WeightScheme(3))
    found = run(graph_of(layer.weight.float()), layer)
    graph = graph_of(layer.weight)
    graph.outputs[0].dtype = ir.DataType.FLOAT16
    assert torch.equal(run(graph, layer), layer.weight)
    assert torch.equal(found.half(), layer.weight)
