"""Tensors that layers, sums and averages read as codes: quantized once for all that read them with one range.

``QuantizeLinear`` is put where a runtime can fuse it with what computes the tensor: before operations that only move or
choose values, and in the place of Relu and Clip, which become bounds of the codes. That rounds nothing otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from ...inputs.quantizer import InputRange
from ...modules.quantized_operands import operands_replaced
from ...schemes import InputScheme
from .graph import Nodes

_DOMAIN, _OPERAND = "lightning_mpq", "Operand"
_MOVING = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose")
"""Operations after which values are quantized as before them: they move values, or choose the largest."""


@dataclass
class Codes:
    """A quantized tensor.

    Attributes:
        node: Its ``QuantizeLinear``.
        scale: Distance of two levels.
        zero_point: Code of zero.
        found: Both as numbers.
        low: Least code.
        high: Largest code.
        value: The codes within these bounds.
    """

    node: ir.Node
    scale: ir.Value
    zero_point: ir.Value
    found: InputRange
    low: int
    high: int
    value: ir.Value

    def dequantized(self, nodes: Nodes) -> ir.Value:
        """Add ``DequantizeLinear`` of the codes."""
        return nodes.add("DequantizeLinear", [self.value, self.scale, self.zero_point])


class QuantizedTensors:
    """All of them in a graph; first those that are asked for by `of`, then where each is best quantized (`settle`)."""

    def __init__(self, graph: ir.Graph) -> None:
        """Know none."""
        self.graph = graph
        self._known: dict[tuple[int, InputRange, int], Codes] = {}
        self._read: list[ir.Value] = []  # kept, so that no other value gets its id

    def of(self, x: ir.Value, scheme: InputScheme, found: InputRange, before: ir.Node) -> Codes:
        """Return a tensor's codes, quantized in front of a node unless they are there already."""
        key = (id(x), found, scheme.bits)
        if key not in self._known:
            name = f"{x.name}.codes.{found.scale}.{found.zero_point}.{scheme.bits}"
            nodes = Nodes(self.graph, name, _first_user(self.graph, x, before))
            scale, zero = (nodes.stored(*part) for part in zip(("scale", "zero"), found.tensors(), strict=True))
            value = nodes.add("QuantizeLinear", [x, scale, zero])
            node = value.producer()
            assert node is not None
            self._known[key] = Codes(node, scale, zero, found, 0, 2**scheme.bits - 1, value)
            self._read.append(x)
        return self._known[key]

    def settle(self) -> None:
        """Quantize each tensor as early as can be, and bound codes where that says more than their type does."""
        for codes in list(self._known.values()):
            self._earlier(codes)
        for codes in self._known.values():
            if (codes.low, codes.high) != (0, 255):
                user = _after(self.graph, codes.node)
                nodes = Nodes(self.graph, f"{codes.value.name}.bounds", user)
                ends = (torch.tensor(end, dtype=torch.uint8) for end in (codes.low, codes.high))
                bounds = [nodes.stored(f"codes.{int(end)}", end) for end in ends]
                bounded = nodes.add("Clip", [codes.value, *bounds])
                for node, index in list(codes.value.uses()):
                    if node is not bounded.producer():
                        node.replace_input_with(index, bounded)
                codes.value = bounded

    def _earlier(self, codes: Codes) -> None:
        """Take in Relu and Clip before a quantization, and go before operations that move values."""
        while True:
            x = codes.node.inputs[0]
            assert x is not None
            source = x.producer()
            if source is None or len(x.uses()) > 1 or x.is_graph_output():
                return
            if (ends := _ends(source)) is not None:
                low, high = (_code(end, codes.found) for end in ends)
                codes.low, codes.high = max(codes.low, low), min(codes.high, max(high, low))
                codes.high = max(codes.low, codes.high)
            elif source.op_type in _MOVING and source.domain == "":
                before = source.inputs[0]
                assert before is not None
                nodes = Nodes(self.graph, codes.scale.name or "", source)
                earlier = nodes.add("QuantizeLinear", [before, codes.scale, codes.zero_point])
                node = earlier.producer()
                assert node is not None
                moved = Codes(node, codes.scale, codes.zero_point, codes.found, codes.low, codes.high, earlier)
                source.replace_input_with(0, moved.dequantized(nodes))
                key = (id(before), codes.found, -len(self._known))
                self._known[key] = moved
                self._read.append(before)
                self._earlier(moved)
                return
            else:
                return
            inner = source.inputs[0]
            codes.node.replace_input_with(0, inner)
            self.graph.remove(source, safe=True)


def _first_user(graph: ir.Graph, x: ir.Value, before: ir.Node) -> ir.Node:
    """Return the first node of the graph that reads a value."""
    users = {node for node, _ in x.uses() if node.graph is graph}
    return next((node for node in graph if node in users), before)


def _after(graph: ir.Graph, node: ir.Node) -> ir.Node:
    nodes = iter(graph)
    for other in nodes:
        if other is node:
            return next(nodes)
    raise AssertionError("the node is in the graph")


def _ends(node: ir.Node) -> tuple[float, float] | None:
    """Return the bounds that Relu or Clip put on values; None for other nodes, and bounds that are not constant."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip" or node.domain != "":
        return None
    ends = []
    for index, without in ((1, -float("inf")), (2, float("inf"))):
        end = node.inputs[index] if len(node.inputs) > index else None
        if end is not None and end.const_value is None:
            return None
        ends.append(without if end is None else float(end.const_value.numpy()))  # type: ignore[union-attr]
    return ends[0], ends[1]


def _code(value: float, found: InputRange) -> int:
    """Return the code of a number, 0 .. 255, by the arithmetic of ``QuantizeLinear``."""
    code = (torch.tensor(value, dtype=torch.float32) / torch.tensor(found.scale)).round() + found.zero_point
    return int(code.clamp(0, 255))


@contextmanager
def operands_marked() -> Iterator[None]:
    """Let what sums and averages read be marked in a traced graph, for the time of a block."""

    def marked(name: str, x: Tensor) -> Any:
        return torch.onnx.ops.symbolic(
            f"{_DOMAIN}::{_OPERAND}", [x], {"name": name}, dtype=x.dtype, shape=x.shape, version=1
        )

    with operands_replaced(marked):
        yield


def take_marks_out(
    graph: ir.Graph, tensors: QuantizedTensors, ranges: Mapping[str, tuple[InputScheme, InputRange]]
) -> Callable[[], None]:
    """Let marks read codes; return a function that replaces them by what the codes stand for, once all are settled."""
    marks = [node for node in graph if node.domain == _DOMAIN and node.op_type == _OPERAND]
    noted: list[tuple[ir.Node, Codes]] = []
    for mark in marks:
        assert mark.inputs[0] is not None
        codes = tensors.of(mark.inputs[0], *ranges[mark.attributes.get_string("name", "")], mark)
        mark.replace_input_with(0, codes.value)
        noted.append((mark, codes))

    def replace() -> None:
        for mark, codes in noted:
            rounded = codes.dequantized(Nodes(graph, codes.scale.name or "", mark))
            mark.outputs[0].replace_all_uses_with(rounded, replace_graph_outputs=True)
            graph.remove(mark, safe=True)

    return replace
