"""Bounds of codes are those of the values that they stand for."""

import onnx_ir as ir
import pytest

from lightning_mpq.export.onnx.codes import QuantizedTensors
from lightning_mpq.inputs.quantizer import InputRange
from lightning_mpq.schemes import InputScheme


def graph_of(*operations: ir.Node) -> ir.Graph:
    return ir.Graph(
        [operations[0].inputs[0]], list(operations[-1].outputs), nodes=list(operations), opset_imports={"": 21}
    )


@pytest.mark.parametrize(
    ("operation", "bits", "zero_point", "bounds"),
    [("Relu", 8, 0, None), ("Relu", 8, 128, [128, 255]), ("Relu", 4, 0, [0, 15]), ("Sigmoid", 4, 0, [0, 15])],
)
def test_relu_becomes_a_bound_where_the_type_does_not_say_it(operation, bits, zero_point, bounds):
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape([2]))
    before, after = ir.node(operation, [x]), None
    before.outputs[0].name = "y"
    after = ir.node("Exp", [before.outputs[0]])
    graph = graph_of(before, after)
    tensors = QuantizedTensors(graph)
    codes = tensors.of(before.outputs[0], InputScheme(bits), InputRange(0.5, zero_point), after)
    assert tensors.of(before.outputs[0], InputScheme(bits), InputRange(0.5, zero_point), after) is codes
    after.replace_input_with(0, codes.value)
    tensors.settle()
    types = [node.op_type for node in graph]
    assert types == [
        *([] if operation == "Relu" else [operation]),
        "QuantizeLinear",
        *(["Clip"] if bounds else []),
        "Exp",
    ]
    if bounds:
        clip = next(node for node in graph if node.op_type == "Clip")
        assert [int(end.const_value.numpy()) for end in clip.inputs[1:]] == bounds
