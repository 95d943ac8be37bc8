"""Layers with quantized inputs in ONNX: integers times integers where there is such an operation, else rounded inputs.

A convolution whose output is quantized again is written with its weight, bias and inputs dequantized, which runtimes
fuse to one operation (``QLinearConv``), and so is a matrix product. ``ConvInteger`` multiplies codes and adds them up
in 32 bits, so that nothing is rounded but what the packed layer rounds. BatchNorm after a convolution becomes part of
its scales.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch

from ...inputs.quantizer import InputRange
from ...modules import PackedLayer
from .codes import Codes, QuantizedTensors
from .containers import UNSATURATED, HeldWeight
from .graph import Nodes, WeightPlace
from .integer_products import Product
from .layout import ToWeight


def range_of(layer: PackedLayer) -> InputRange:
    """Return the range that a packed layer stores for its inputs."""
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    return InputRange(float(layer.input_scale), int(layer.input_zero_point))


def quantize_inputs_of(tensors: QuantizedTensors, place: WeightPlace, layer: PackedLayer) -> dict[ir.Node, Codes]:
    """Let the nodes that a weight goes to read codes, and return these by node."""
    assert layer.input_scheme is not None
    found: dict[ir.Node, Codes] = {}
    for node, index in place.value.uses():
        assert index == 1
        assert node.inputs[0] is not None
        found[node] = tensors.of(node.inputs[0], layer.input_scheme, range_of(layer), node)
        node.replace_input_with(0, found[node].value)
    return found


def round_inputs(graph: ir.Graph, place: WeightPlace, inputs: Mapping[ir.Node, Codes]) -> None:
    """Let the nodes that a weight goes to compute with rounded inputs, in float."""
    for node, codes in inputs.items():
        node.replace_input_with(0, codes.dequantized(Nodes(graph, place.name, node)))


def multiply_integers(
    graph: ir.Graph, place: WeightPlace, held: HeldWeight, inputs: Mapping[ir.Node, Codes], to_weight: ToWeight
) -> bool:
    """Replace convolutions and products by those of integers; tell whether that could be done, else nothing is changed.

    Args:
        graph: The graph.
        place: Where the weight was taken out.
        held: Its codes and scales.
        inputs: What `quantize_inputs_of` returned.
        to_weight: Layout of the weight.
    """
    uses = list(place.value.uses())
    levels = held.levels if held.zero_point is None else held.levels - held.zero_point
    low, high = int(levels.min()), int(levels.max())
    known = {"Conv": False, "Gemm": True, "MatMul": True}
    fits = all(index == 1 and known.get(node.op_type) == place.multiplied for node, index in uses)
    if held.add_half or held.scale.shape[1] > 1 or low < -128 or high > 127 or not uses or not fits:
        return False
    graph.inputs.remove(place.value)
    store = Nodes(graph, place.name)
    layout = (lambda rows: rows.T) if place.multiplied else to_weight
    dims = 0 if place.multiplied else to_weight(held.levels).dim() - 2
    weight = store.add("Cast", [store.stored("levels", layout(held.levels), held.container)], to=ir.DataType.INT32)
    if held.zero_point is not None:
        axes = held.zero_point.reshape(-1, *[1] * (0 if place.multiplied else dims + 1))
        zero = store.add("Cast", [store.stored("zero_point", axes, held.container)], to=ir.DataType.INT32)
        weight = store.add("Sub", [weight, zero])
    for node, codes in inputs.items():
        product = Product(graph, node, codes, place.name, dims)
        apart = product.multiply if place.multiplied else product.apart
        write = product.fuse if product.fuses(held) else apart
        write(weight, held, unsaturated=max(-low, high) * codes.high <= UNSATURATED)
    return True


def refuse_inputs(layers: Mapping[str, PackedLayer]) -> None:
    """Refuse layers whose quantized inputs ONNX cannot say, naming the first.

    Raises:
        ValueError: If there is one.
    """
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        other = owners.setdefault(id(layer.packed_codes), name)
        if layer.input_scheme is None:
            continue
        reason = None
        if not layer.input_scheme.needs_range:
            reason = "a range for each token is found when the layer runs; quantize per tensor"
        elif other != name:
            reason = f"it shares its weight with {other!r}, which is stored once; leave its inputs in float"
        elif layer.weight_dtype != torch.float32:
            reason = f"it computes in {layer.weight_dtype}; convert the model to float32 first"
        if reason is not None:
            raise ValueError(f"ONNX cannot carry the layer {name!r} ({layer.layer_scheme}): {reason}.")
