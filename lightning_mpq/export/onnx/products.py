"""Matrix products by weights, written as onnxruntime needs them to compute them from integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def multiplies_by(node: ir.Node, index: int) -> bool:
    """Return whether a node takes a weight [N, K] to the right of a product as [K, N]."""
    if node.op_type == "Gemm":
        transposed = node.attributes.get_int("transB", 0) == 1
        return transposed and index == 1
    permutation = node.attributes.get_ints("perm", ()) if node.op_type == "Transpose" else ()
    return list(permutation) == [1, 0]


def add_bias_apart(graph: ir.Graph, product: ir.Node, name: str) -> None:
    """Let a node of its own add the bias of a product, and one of zeros if there is none before a Relu or Clip.

    onnxruntime merges Relu and Clip into a product, with its bias or without, before it looks for integers, and then
    multiplies with the dequantized weight. A product whose bias is added after it becomes one ``MatMulNBits``.
    """
    bias = product.inputs[2] if len(product.inputs) > 2 else None
    if bias is not None and product.attributes.get_float("beta", 1.0) == 1.0:
        product.resize_inputs(2)
    elif bias is None and {node.op_type for node, _ in product.outputs[0].uses()} & {"Relu", "Clip"}:
        bias = _zeros(graph, f"{name}.no_bias", product.inputs[1])
    else:
        return
    result = product.outputs[0]
    addition = ir.node("Add", [None, bias])
    total = addition.outputs[0]
    total.name, total.type, total.shape = result.name, result.type, result.shape
    result.name = None
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    addition.replace_input_with(0, result)
    graph.insert_after(product, addition)


def _zeros(graph: ir.Graph, name: str, weight: ir.Value | None) -> ir.Value:
    """Return zeros for the outputs of a weight [K, N], stored once."""
    assert weight is not None
    assert weight.shape is not None
    assert weight.dtype is not None
    if name not in graph.initializers:
        values = np.zeros(weight.shape.numpy()[1], dtype=weight.dtype.numpy())
        graph.initializers.add(ir.val(name, const_value=ir.tensor(values)))
    return graph.initializers[name]
