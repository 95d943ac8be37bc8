"""One convolution or product of codes and integer weights in ONNX, with bias, and BatchNorm in its scales."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from .codes import Codes
from .containers import HeldWeight
from .graph import Nodes

_LARGEST_BIAS = 2**30
"""Beyond it, the sum of products and bias may not fit 32 bits."""
_NOTHING = 2.0**-12
"""Part of an output's step below which all that a channel can add up to is left out."""
_UNSEEN = 2.0**-4
"""Part of an output's step that rounding the levels of a channel again may move it by, whatever its inputs are."""
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


class Product:
    """A node that multiplies by a weight of integers, and what comes after it."""

    def __init__(self, graph: ir.Graph, node: ir.Node, codes: Codes, name: str, dims: int) -> None:
        """Look at a node.

        Args:
            graph: Its graph.
            node: ``Conv``, ``Gemm`` or ``MatMul``.
            codes: What it is to read.
            name: Of what is stored.
            dims: Dimensions of its outputs after the channels.
        """
        self.graph, self.node, self.codes, self.name, self.dims = graph, node, codes, name, dims
        self.nodes = Nodes(graph, name, node)
        self.bias = node.inputs[2] if node.op_type in ("Conv", "Gemm") and len(node.inputs) > 2 else None
        self.shift = None if self.bias is None else array(self.bias)
        self.factor: Tensor | None = None
        self.last = node
        after = list(node.outputs[0].uses())
        if self.bias is None and node.op_type != "Conv" and len(after) == 1 and after[0][0].op_type == "Add":
            other = after[0][0].inputs[1 - after[0][1]]
            vector = array(other)
            if vector is not None and vector.dim() == 1 and not node.outputs[0].is_graph_output():
                self.bias, self.last = other, after[0][0]
        normed = after[0][0] if len(after) == 1 and after[0][0].op_type == "BatchNormalization" else None
        folded = None if normed is None or node.op_type != "Conv" else _affine(normed)
        if folded is not None and (self.bias is None or self.shift is not None):
            assert normed is not None
            self.factor, offset = folded
            self.shift = offset if self.shift is None else offset + self.shift * self.factor
            self.last, self.bias = normed, None

    @cached_property
    def _quantized_as(self) -> float | None:
        """The step that the output is quantized by, if it is read by that alone."""
        result = self.last.outputs[0]
        uses = list(result.uses())
        if len(uses) != 1 or result.is_graph_output() or uses[0][0].op_type != "QuantizeLinear":
            return None
        step = array(uses[0][0].inputs[1])
        return None if step is None else float(step)

    def _scales(self, held: HeldWeight) -> Tensor:
        """Return the step of products for each channel, float64 [rows]."""
        scale = held.scale.double().flatten().expand(len(held.levels))
        return scale * self.codes.found.scale * (1.0 if self.factor is None else self.factor)

    def _wider(self, held: HeldWeight) -> tuple[Tensor, Tensor]:
        """Return steps of products by which each bias fits 32 bits, float64 [rows], and which part the own ones are.

        A channel of tiny products may have an offset of more steps than that, such as one that BatchNorm has all but
        switched off. Its step is made wider, and its levels are rounded to that; 0 of it is left where all that it can
        add up to shows in no output.
        """
        assert self._quantized_as is not None
        steps = self._scales(held)
        shift = torch.zeros_like(steps) if self.shift is None else self.shift
        most = 255.0 * _levels(held).abs().sum(1) * steps.abs()
        own = torch.where(shift == 0, torch.ones_like(shift), shift.abs() / 2**20)  # its offset is all there is
        least = (shift.abs() / _LARGEST_BIAS).copysign(steps)
        wider = torch.where(steps.abs() < least.abs(), least, steps)
        counts = most > _NOTHING * self._quantized_as
        return torch.where(counts, wider, own), torch.where(counts, steps / wider, torch.zeros_like(steps))

    def fuses(self, held: HeldWeight) -> bool:
        """Tell whether a runtime can compute output codes from input codes, with a bias in 32 bits."""
        if self.node.op_type != "Conv" or self._quantized_as is None or (self.bias is not None and self.shift is None):
            return False
        steps, part = self._wider(held)
        kept = _levels(held) * part[:, None]
        moved = 255.0 * (kept - kept.round()).abs().sum(1) * steps.abs()
        return bool((moved <= _UNSEEN * self._quantized_as).all())

    def fuse(self, weight: ir.Value, held: HeldWeight, *, unsaturated: bool) -> None:
        """Write it as a convolution of dequantized codes, weights and bias; arguments are those of `apart`."""
        nodes, (steps, part) = self.nodes, self._wider(held)
        if bool((part == 1).all()):
            scale = nodes.scale("scale", held.scale.flatten() if held.scale.numel() > 1 else held.scale.reshape(1))
            if self.factor is not None or held.scale.numel() == 1:
                factor = torch.ones_like(steps) if self.factor is None else self.factor
                scale = nodes.add("Mul", [scale, self._stored("norm", factor.float(), 0)])
        else:
            levels = nodes.add("Cast", [weight], to=ir.DataType.FLOAT)
            levels = nodes.add("Mul", [levels, self._stored("part", part.float(), self.dims + 1)])
            weight = nodes.add("Cast", [nodes.add("Round", [levels])], to=ir.DataType.INT32)
            scale = self._stored("wider", (steps / self.codes.found.scale).float(), 0)  # the own ones may be 0
        weight, zero_point = in_eight_bits(nodes, weight, unsaturated=unsaturated)
        zero_points = self._stored("weight_zeros", zero_point.expand(len(held.levels)).contiguous(), 0)
        weights = nodes.add("DequantizeLinear", [weight, scale, zero_points], axis=0)
        inputs = [self.codes.dequantized(nodes), weights]
        if self.shift is not None:
            levels = self._stored("bias", (self.shift / steps).round().to(torch.int32), 0)
            inputs.append(nodes.add("DequantizeLinear", [levels, nodes.add("Mul", [scale, self.codes.scale])], axis=0))
        self._put(nodes.add("Conv", inputs, **self._attributes()))

    def multiply(self, weight: ir.Value, held: HeldWeight, *, unsaturated: bool) -> None:
        """Write a matrix product of dequantized codes and weights, which runtimes fuse to one of integers that scales.

        Arguments are those of `apart`.
        """
        nodes = self.nodes
        weight, zero_point = in_eight_bits(nodes, weight, unsaturated=unsaturated)
        scale = held.scale.flatten() if held.scale.numel() > 1 else held.scale.reshape(())
        factors = [weight, nodes.scale("scale", scale)]
        if not unsaturated:
            factors.append(nodes.stored_anew("weight_zeros", zero_point.expand(scale.shape).contiguous()))
        weights = nodes.add("DequantizeLinear", factors, axis=1)
        product = nodes.add("MatMul", [self.codes.dequantized(nodes), weights])
        if self.bias is not None:  # by Sub: of MatMul and Add onnxruntime would make one operation on floats
            product = nodes.add("Sub", [product, nodes.add("Neg", [self.bias])])
        self._put(product)

    def apart(self, weight: ir.Value, held: HeldWeight, *, unsaturated: bool) -> None:
        """Write a convolution of integers, whose sum is scaled and shifted in float32.

        Args:
            weight: Signed levels, INT32.
            held: What they were made of.
            unsaturated: Whether signed levels are multiplied exactly on any processor; if not, they are stored without
                sign.
        """
        nodes, dims = self.nodes, self.dims
        weight, middle = in_eight_bits(nodes, weight, unsaturated=unsaturated)
        factors = [self.codes.value, weight, self.codes.zero_point, nodes.stored("weight_zero", middle)]
        product = nodes.add("ConvInteger", factors, **self._attributes())
        scale = held.scale.reshape(-1, *[1] * dims) if held.scale.numel() > 1 else held.scale.reshape(())
        steps = nodes.add("Mul", [nodes.scale("scale", scale), self.codes.scale])
        if self.factor is not None:
            steps = nodes.add("Mul", [steps, self._stored("norm", self.factor.float(), dims)])
        total = nodes.add("Mul", [nodes.add("Cast", [product], to=ir.DataType.FLOAT), steps])
        if self.shift is not None:
            total = nodes.add("Add", [total, self._stored("shift", self.shift.float(), dims)])
        elif self.bias is not None:
            shape = nodes.stored_anew("bias_shape", torch.tensor([-1, *[1] * dims]))
            total = nodes.add("Add", [total, nodes.add("Reshape", [self.bias, shape])])
        self._put(total)

    def _stored(self, suffix: str, values: Tensor, dims: int) -> ir.Value:
        return self.nodes.stored_anew(suffix, values.reshape(-1, *[1] * dims))

    def _attributes(self) -> dict[str, Any]:
        return {key: self.node.attributes[key] for key in _CONV_ATTRIBUTES if key in self.node.attributes}

    def _put(self, total: ir.Value) -> None:
        """Let a value take the place of the node's result, or of BatchNorm's after it."""
        result = self.last.outputs[0]
        total.name, total.type, total.shape = result.name, result.type, result.shape
        result.name = None
        result.replace_all_uses_with(total, replace_graph_outputs=True)
        if self.last is not self.node:
            self.graph.remove(self.last, safe=True)
        self.graph.remove(self.node, safe=True)


def _levels(held: HeldWeight) -> Tensor:
    """Return signed levels [rows, columns], float64."""
    return (held.levels if held.zero_point is None else held.levels - held.zero_point).double()


def in_eight_bits(nodes: Nodes, levels: ir.Value, *, unsaturated: bool) -> tuple[ir.Value, Tensor]:
    """Return signed levels, INT32, in 8 bits, and the code of zero; without sign where two products may saturate."""
    if unsaturated:
        return nodes.add("Cast", [levels], to=ir.DataType.INT8), torch.tensor(0, dtype=torch.int8)
    raised = nodes.add("Add", [levels, nodes.stored("middle", torch.tensor(128, dtype=torch.int32))])
    return nodes.add("Cast", [raised], to=ir.DataType.UINT8), torch.tensor(128, dtype=torch.uint8)


def _affine(norm: ir.Node) -> tuple[Tensor, Tensor] | None:
    """Return factor and offset of a BatchNorm by its running statistics; None if they are not constant."""
    found = [None if value is None else array(value) for value in norm.inputs[1:5]]
    if any(value is None for value in found) or len(norm.outputs) > 1:
        return None
    scale, bias, mean, variance = (value for value in found if value is not None)
    factor = scale / (variance + norm.attributes.get_float("epsilon", 1e-5)).sqrt()
    return factor, bias - mean * factor


def array(value: ir.Value | None) -> Tensor | None:
    """Return a constant as float64; None if it is none."""
    if value is None or value.const_value is None:
        return None
    return torch.from_numpy(value.const_value.numpy().copy()).double()
