"""Products by weights with a scale for each row, computed by onnxruntime of integers, inputs rounded token by token.

A token is a vector of inputs along the last axis. Each gets 8 bits by its own largest value when it runs, so that no
result depends on what else is in a batch, and nothing has to be calibrated.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch

from .containers import UNSATURATED
from .graph import Nodes
from .integer_products import in_eight_bits
from .lookups import DOMAIN

_STEPS, _ZERO, _LEAST = 127, 128, 1e-30
_LARGEST_CODE = _ZERO + _STEPS
_STORED = "lightning_mpq.tokens"
_SIGNED = {ir.DataType.INT2, ir.DataType.INT4, ir.DataType.INT8}
_UNSIGNED = {ir.DataType.UINT2, ir.DataType.UINT4, ir.DataType.UINT8}


class Tokens(NamedTuple):
    """Inputs as codes of 8 bits without sign, in 127 steps either side of 128, and the largest value of each token."""

    codes: ir.Value
    largest: ir.Value


def fuse_products(exported: ir.Model) -> int:
    """Let products by dequantized weights with one scale a row be those of integers; return how many products.

    Scales of blocks lie within the sums, and these products stay as they are, which onnxruntime computes from 2, 4 or
    8 bits block by block.

    Args:
        exported: A graph with ``DequantizeLinear`` of constants [columns, rows]; changed in place.
    """
    graph = exported.graph
    known: dict[ir.Value, Tokens] = {}
    weights = [node for node in graph if node.op_type == "DequantizeLinear" and _fits(node)]
    fused = sum(_fuse(graph, node, known) for node in weights)
    if fused:
        exported.opset_imports[DOMAIN] = 1
    return fused


def _fits(weight: ir.Node) -> bool:
    """Tell whether a weight has one scale a row, and only products of float32 read it."""
    levels, scale = weight.inputs[:2]
    assert levels is not None
    assert scale is not None
    if levels.const_value is None or levels.dtype not in _SIGNED | _UNSIGNED or len(levels.const_value.shape) != 2:
        return False
    by_rows = scale.shape is not None and len(scale.shape) == 0 or weight.attributes.get_int("axis", 1) in (1, -1)
    users = list(weight.outputs[0].uses())
    return (
        by_rows
        and not weight.attributes.get_int("block_size", 0)
        and bool(users)
        and not weight.outputs[0].is_graph_output()
        and all(index == 1 and node.graph is weight.graph and _is_plain(node) for node, index in users)
    )


def _is_plain(product: ir.Node) -> bool:
    """Tell whether a node multiplies float32, which is not rounded yet, by a weight and does nothing else."""
    x = product.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT or any(extra is not None for extra in product.inputs[2:]):
        return False
    source = x.producer()
    if source is not None and source.op_type == "DequantizeLinear":
        return False
    if product.op_type == "Gemm":
        turned = product.attributes.get_int("transA", 0) or product.attributes.get_int("transB", 0)
        return not turned and product.attributes.get_float("alpha", 1.0) == 1.0
    return product.op_type == "MatMul"


def _fuse(graph: ir.Graph, weight: ir.Node, known: dict[ir.Value, Tokens]) -> int:
    """Replace all products by a weight."""
    users = [node for node, _ in weight.outputs[0].uses()]
    first = next(node for node in graph if node in users)
    factors = _integers(graph, weight, first)
    for product in users:
        x, result = product.inputs[0], product.outputs[0]
        assert x is not None
        if x not in known:
            known[x] = _tokens(graph, x)
        tokens, nodes = known[x], Nodes(graph, _STORED, product)
        step, zero = _step(nodes), nodes.stored("zero", torch.tensor(_ZERO, dtype=torch.uint8))
        total = nodes.add(
            "MatMulIntegerToFloat", [tokens.codes, factors[0], step, factors[1], zero, factors[2]], DOMAIN
        )
        total = nodes.add("Mul", [total, tokens.largest])
        total.type, total.shape, total.name = result.type, result.shape, result.name
        result.name = None
        result.replace_all_uses_with(total, replace_graph_outputs=True)
        graph.remove(product, safe=True)
    graph.remove(weight, safe=True)
    return len(users)


def _integers(graph: ir.Graph, weight: ir.Node, first: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return codes of 8 bits, scales and zero points of a weight; onnxruntime widens codes once, when it loads them."""
    nodes = Nodes(graph, _STORED, first)
    levels, scale = weight.inputs[:2]
    zero = weight.inputs[2] if len(weight.inputs) > 2 else None
    assert levels is not None
    assert levels.const_value is not None
    assert scale is not None
    signed = levels.const_value.numpy().astype(np.int32)
    if zero is not None:
        assert zero.const_value is not None
        signed = signed - zero.const_value.numpy().astype(np.int32)
    unsaturated = int(np.abs(signed).max()) * _LARGEST_CODE <= UNSATURATED
    if zero is not None and not unsaturated:
        dtype = ir.DataType.UINT8 if levels.dtype in _UNSIGNED else ir.DataType.INT8
        return nodes.add("Cast", [levels], to=dtype), scale, nodes.add("Cast", [zero], to=dtype)
    wide = nodes.add("Cast", [levels], to=ir.DataType.INT32)
    if zero is not None:  # with a sign, and one zero for all: several times as fast
        wide = nodes.add("Sub", [wide, nodes.add("Cast", [zero], to=ir.DataType.INT32)])
    codes, middle = in_eight_bits(nodes, wide, unsaturated=unsaturated)
    return codes, scale, nodes.stored(f"middle{int(middle)}", middle)


def _tokens(graph: ir.Graph, x: ir.Value) -> Tokens:
    """Add the rounding of inputs in front of what reads them first."""
    users = {node for node, _ in x.uses()}
    nodes = Nodes(graph, _STORED, next(node for node in graph if node in users))
    axis = nodes.stored("axis", torch.tensor([-1]))
    ends = [nodes.add(operation, [x, axis], keepdims=1) for operation in ("ReduceMax", "ReduceMin")]
    least = nodes.stored("least", torch.tensor([_LEAST]))
    largest = nodes.add("Max", [ends[0], nodes.add("Neg", [ends[1]]), least])
    within_one = nodes.add("Mul", [x, nodes.add("Reciprocal", [largest])])  # faster in onnxruntime than Div
    zero = nodes.stored("zero", torch.tensor(_ZERO, dtype=torch.uint8))
    return Tokens(nodes.add("QuantizeLinear", [within_one, _step(nodes), zero]), largest)


def _step(nodes: Nodes) -> ir.Value:
    return nodes.stored("step", torch.tensor(1 / _STEPS))
