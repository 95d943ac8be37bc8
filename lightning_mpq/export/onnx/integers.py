"""Layers with quantized inputs in ONNX: integers times integers where there is such an operation, else rounded inputs.

``ConvInteger`` and ``MatMulInteger`` multiply codes and add them up in 32 bits, so that nothing is rounded but what the
packed layer rounds; scales, and BatchNorm after a convolution, are one multiplication and one addition per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from ...inputs.quantizer import InputRange
from ...modules import PackedLayer
from .containers import HeldWeight
from .graph import Nodes, WeightPlace
from .layout import ToWeight

UNSATURATED = 64
"""Signed levels up to this are multiplied exactly on any processor: two products with codes of inputs fit 16 bits."""
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def range_of(layer: PackedLayer) -> InputRange:
    """Return the range that a packed layer stores for its inputs."""
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    return InputRange(float(layer.input_scale), int(layer.input_zero_point))


def round_inputs(graph: ir.Graph, place: WeightPlace, layer: PackedLayer) -> None:
    """Let the nodes that a weight goes to compute with rounded inputs, in float."""
    for node, index in list(place.value.uses()):
        assert index == 1
        codes, scale, zero_point = _codes_of(graph, node, layer)
        nodes = Nodes(graph, place.name, node)
        node.replace_input_with(0, nodes.add("DequantizeLinear", [codes, scale, zero_point]))


def multiply_integers(
    graph: ir.Graph, place: WeightPlace, held: HeldWeight, layer: PackedLayer, to_weight: ToWeight
) -> bool:
    """Replace convolutions and products by those of integers; tell whether that could be done, else nothing is changed.

    Args:
        graph: The graph.
        place: Where the weight was taken out.
        held: Its codes and scales.
        layer: Its layer.
        to_weight: Layout of the weight.
    """
    uses = list(place.value.uses())
    levels = held.levels if held.zero_point is None else held.levels - held.zero_point
    low, high = int(levels.min()), int(levels.max())
    known = {"Conv": False, "Gemm": True, "MatMul": True}
    fits = all(index == 1 and known.get(node.op_type) == place.multiplied for node, index in uses)
    if held.add_half or held.scale.shape[1] > 1 or low < -128 or high > 127 or not uses or not fits:
        return False
    signed = max(-low, high) <= UNSATURATED
    graph.inputs.remove(place.value)
    store = Nodes(graph, place.name)
    layout = (lambda rows: rows.T) if place.multiplied else to_weight
    weight = store.add("Cast", [store.stored("levels", layout(held.levels), held.container)], to=ir.DataType.INT32)
    if held.zero_point is not None:
        axes = held.zero_point.reshape(-1, *[1] * (0 if place.multiplied else weight_dims(to_weight, held) - 1))
        zero = store.add("Cast", [store.stored("zero_point", axes, held.container)], to=ir.DataType.INT32)
        weight = store.add("Sub", [weight, zero])
    if not signed:
        weight = store.add("Add", [weight, store.stored("middle", torch.tensor(128, dtype=torch.int32))])
    weight = store.add("Cast", [weight], to=ir.DataType.INT8 if signed else ir.DataType.UINT8)
    middle = torch.tensor(0, dtype=torch.int8) if signed else torch.tensor(128, dtype=torch.uint8)
    weight_zero = store.stored("weight_zero", middle)
    dims = 0 if place.multiplied else weight_dims(to_weight, held) - 2
    scale = store.scale(
        "scale", held.scale.reshape(-1, *[1] * dims) if held.scale.numel() > 1 else held.scale.reshape(())
    )
    for node, _ in uses:
        codes, input_scale, input_zero = _codes_of(graph, node, layer)
        nodes = Nodes(graph, place.name, node)
        attributes: dict[str, Any] = {}
        if node.op_type == "Conv":
            attributes = {key: node.attributes[key] for key in _CONV_ATTRIBUTES if key in node.attributes}
        operation = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
        product = nodes.add(operation, [codes, weight, input_zero, weight_zero], **attributes)
        steps = nodes.add("Mul", [scale, input_scale])
        _finish(graph, nodes, node, nodes.add("Cast", [product], to=ir.DataType.FLOAT), steps, dims)
    return True


def weight_dims(to_weight: ToWeight, held: HeldWeight) -> int:
    """Return how many dimensions a weight has."""
    return to_weight(held.levels).dim()


def _finish(graph: ir.Graph, nodes: Nodes, node: ir.Node, product: ir.Value, steps: ir.Value, dims: int) -> None:
    """Scale a product and add its bias in the place of a node, and of a BatchNorm after it."""
    bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
    last, shift = node, None if bias is None else _array(bias)
    after = list(node.outputs[0].uses())
    normed = after[0][0] if len(after) == 1 and after[0][0].op_type == "BatchNormalization" else None
    folded = None if normed is None or node.op_type != "Conv" else _affine(normed)
    if folded is not None and (bias is None or shift is not None):
        assert normed is not None
        factor, offset = folded
        shift = offset if shift is None else offset + shift * factor
        steps = nodes.add("Mul", [steps, nodes.stored_anew("norm", factor.reshape(-1, *[1] * dims).float())])
        last, bias = normed, None
    total = nodes.add("Mul", [product, steps])
    if shift is not None:
        total = nodes.add("Add", [total, nodes.stored_anew("shift", shift.reshape(-1, *[1] * dims).float())])
    elif bias is not None:
        shape = nodes.stored_anew("bias_shape", torch.tensor([-1, *[1] * dims]))
        total = nodes.add("Add", [total, nodes.add("Reshape", [bias, shape])])
    result = last.outputs[0]
    total.name, total.type, total.shape = result.name, result.type, result.shape
    result.name = None
    result.replace_all_uses_with(total, replace_graph_outputs=True)
    if last is not node:
        graph.remove(last, safe=True)
    graph.remove(node, safe=True)


def _affine(norm: ir.Node) -> tuple[Tensor, Tensor] | None:
    """Return factor and offset of a BatchNorm by its running statistics; None if they are not constant."""
    found = [None if value is None else _array(value) for value in norm.inputs[1:5]]
    if any(value is None for value in found) or len(norm.outputs) > 1:
        return None
    scale, bias, mean, variance = (value.double() for value in found if value is not None)
    factor = scale / (variance + norm.attributes.get_float("epsilon", 1e-5)).sqrt()
    return factor, bias - mean * factor


def _array(value: ir.Value) -> Tensor | None:
    return None if value.const_value is None else torch.from_numpy(value.const_value.numpy().copy()).double()


def _codes_of(graph: ir.Graph, node: ir.Node, layer: PackedLayer) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return codes of a node's first input, their scale and zero point; nodes that read the same share the codes."""
    x, scheme, found = node.inputs[0], layer.input_scheme, range_of(layer)
    assert x is not None
    assert scheme is not None
    name = f"{x.name}.codes.{found.scale}.{found.zero_point}.{scheme.bits}"
    nodes = Nodes(graph, name, node)
    scale, zero_point = (nodes.stored(*part) for part in zip(("scale", "zero"), found.tensors(), strict=True))
    for user, _ in x.uses():
        source = user.outputs[0]
        if user.op_type == "Clip" and len(source.uses()) == 1:
            source = list(source.uses())[0][0].outputs[0]
        if source.name == name:
            return source, scale, zero_point
    clipped = x
    if scheme.bits < 8:
        ends = [(code - found.zero_point) * torch.tensor(found.scale) for code in (0, 2**scheme.bits - 1)]
        clipped = nodes.add("Clip", [x, *(nodes.stored(f"end{i}", end.float()) for i, end in enumerate(ends))])
    codes = nodes.add("QuantizeLinear", [clipped, scale, zero_point])
    codes.name = name
    return codes, scale, zero_point


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
