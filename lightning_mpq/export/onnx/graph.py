"""Float weights of an exported graph taken out, and ``DequantizeLinear`` of the codes put in their places.

Between the two the graph can be simplified like any other: the weights are inputs then, which nothing can fold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import onnx_ir as ir
import torch
from torch import Tensor

from .containers import HeldWeight, halved
from .layout import ToWeight, axis_of_rows, steps_to_weight
from .products import add_bias_apart, multiplies_by


@dataclass(frozen=True)
class WeightPlace:
    """Where a weight stood in a graph.

    Attributes:
        name: Its name there.
        value: The input that stands for it: [columns, rows] if it is multiplied, else of its own shape.
        multiplied: Whether it is the right-hand side of a matrix product.
    """

    name: str
    value: ir.Value
    multiplied: bool


def merge_shared(graph: ir.Graph, keys: Mapping[str, object]) -> dict[str, str]:
    """Let weights of one key, which the exporter writes once for each name, be one initializer.

    Returns:
        Name to the name under which the weight is kept.
    """
    first: dict[object, str] = {}
    kept = {name: first.setdefault(key, name) for name, key in keys.items()}
    for name, other in kept.items():
        if other != name:
            graph.initializers[name].replace_all_uses_with(graph.initializers[other])
            del graph.initializers[name]
    return kept


def take_weight_out(graph: ir.Graph, name: str) -> WeightPlace:
    """Replace an initializer by an input, transposed if the graph computes ``x @ weight.T``.

    onnxruntime computes a product from integers if its right-hand side comes straight from ``DequantizeLinear``, so
    the transposition has to be in the stored codes. A weight that is used in both ways is stored once, transposed.
    """
    weight = graph.initializers[name]
    uses = list(weight.uses())
    transposing = [(node, index) for node, index in uses if multiplies_by(node, index)]
    assert weight.shape is not None
    shape = list(weight.shape)
    value = ir.val(f"{name}.weight", dtype=weight.dtype, shape=ir.Shape(shape[::-1] if transposing else shape))
    graph.inputs.append(value)
    for node, index in transposing:
        if node.op_type == "Gemm":
            node.attributes["transB"] = ir.AttrInt64("transB", 0)
            node.replace_input_with(index, value)
        else:
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            graph.remove(node, safe=True)
    for node, index in list(value.uses()):
        if index == 1 and node.op_type in ("Gemm", "MatMul"):
            add_bias_apart(graph, node, name)
    if others := [use for use in uses if use not in transposing]:
        own = Nodes(graph, name).add("Transpose", [value], perm=[1, 0]) if transposing else value
        for node, index in others:
            node.replace_input_with(index, own)
    del graph.initializers[name]
    return WeightPlace(name, value, bool(transposing))


def put_weight_in(graph: ir.Graph, place: WeightPlace, held: HeldWeight, to_weight: ToWeight, groups: int) -> None:
    """Compute a weight from its codes where it was taken out.

    Args:
        graph: The graph.
        place: What `take_weight_out` returned.
        held: Codes and scales.
        to_weight: Layout of the weight.
        groups: Groups of the convolution that it belongs to.

    Raises:
        ValueError: If blocks of columns lie in the weight in a way that ONNX cannot say.
    """
    target = place.value
    graph.inputs.remove(target)
    nodes = Nodes(graph, place.name)
    rows, columns = held.levels.shape
    if place.multiplied:
        weight = nodes.dequantized(held, held.levels.T, row_axis=1)
    elif held.scale.numel() == 1:
        weight = nodes.dequantized(held, to_weight(held.levels), row_axis=0)
    elif held.scale.shape[1] == 1 and (axis := axis_of_rows(to_weight, rows, columns)) is not None:
        weight = nodes.dequantized(held, to_weight(held.levels), row_axis=axis)
    else:
        weight = nodes.dequantized(held, held.levels, row_axis=0)
        for number, (operation, argument) in enumerate(steps_to_weight(to_weight, rows, columns, groups)):
            if operation == "Reshape":
                weight = nodes.add("Reshape", [weight, nodes.stored(f"shape{number}", torch.tensor(argument))])
            else:
                weight = nodes.add("Transpose", [weight], perm=argument)
    if target.dtype != ir.DataType.FLOAT:
        weight = nodes.add("Cast", [weight], to=target.dtype)
    target.replace_all_uses_with(weight, replace_graph_outputs=True)


class Nodes:
    """Adds nodes in front of a node, by default of a graph's first, one after the other, and what they store."""

    def __init__(self, graph: ir.Graph, name: str, before: ir.Node | None = None) -> None:
        """Prepare; what is stored goes by one name."""
        self.graph, self.name = graph, name
        self.first = graph[0] if before is None else before

    def add(self, operation: str, inputs: Sequence[ir.Value], domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node and return its output."""
        node = ir.node(operation, inputs, attributes=attributes, domain=domain)
        self.graph.insert_before(self.first, node)
        return node.outputs[0]

    def stored(self, suffix: str, values: Tensor, container: str | None = None) -> ir.Value:
        """Add an initializer, in an ONNX type that torch may not have; one of that name is taken as it is."""
        values = values.detach().cpu().contiguous()
        if container is None:
            tensor = ir.tensor(values)
        else:
            dtype = getattr(ml_dtypes, container.lower(), container.lower())
            tensor = ir.tensor(values.numpy().astype(dtype), dtype=ir.DataType[container])
        name = f"{self.name}.{suffix}"
        if name in self.graph.initializers:
            return self.graph.initializers[name]
        value = ir.val(name, const_value=tensor)
        self.graph.initializers.add(value)
        return value

    def stored_anew(self, suffix: str, values: Tensor) -> ir.Value:
        """Add an initializer under a name that is free."""
        number = 0
        while f"{self.name}.{suffix}{number}" in self.graph.initializers:
            number += 1
        return self.stored(f"{suffix}{number}", values)

    def dequantized(self, held: HeldWeight, levels: Tensor, row_axis: int) -> ir.Value:
        """Add ``DequantizeLinear`` of levels whose rows run along an axis; with blocks, they have two axes."""
        blocks = held.scale.shape[1]
        attributes: dict[str, Any] = {"axis": row_axis}
        if blocks > 1:
            attributes = {"axis": 1 - row_axis, "block_size": held.block}

        def shaped(values: Tensor) -> Tensor:
            if blocks > 1:
                return values.T if row_axis == 1 else values
            return values.reshape(()) if len(values) == 1 else values.reshape(-1)

        inputs = [self.stored("levels", levels, held.container), self.scale("scale", shaped(held.scale))]
        if held.zero_point is not None:
            inputs.append(self.stored("zero_point", shaped(held.zero_point), held.container))
        weight = self.add("DequantizeLinear", inputs, **attributes)
        if held.add_half:
            along = [-1 if axis == row_axis else 1 for axis in range(levels.dim())]
            half = halved(held.scale)
            weight = self.add("Add", [weight, self.scale("half", half.reshape(along))])
        return weight

    def scale(self, suffix: str, values: Tensor) -> ir.Value:
        """Store scales in their own type and widen them to float32, which weights are computed in."""
        stored = self.stored(suffix, values)
        return stored if values.dtype == torch.float32 else self.add("Cast", [stored], to=ir.DataType.FLOAT)
