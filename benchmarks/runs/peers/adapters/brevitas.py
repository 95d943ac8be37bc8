"""GPTQ and Qronos of brevitas: one width everywhere, a scale a row of least squares, layers in order of the network."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import torch
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.graph.qronos import Qronos
from brevitas.graph.quantize import layerwise_quantize
from brevitas.quant.scaled_int import Int8WeightPerChannelFloatMSE
from torch import nn

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task
from .networks import float_network, left_in_float


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits; the option ``algorithm`` is "gptq" or "qronos"."""
    bits = widest_uniform(task)
    offered = {
        "weight_quant": Int8WeightPerChannelFloatMSE,
        "weight_bit_width": bits,
        "weight_narrow_range": False,  # as its own examples for images have it: at 2 bits the others are three levels
        "input_quant": None,
        "bias_quant": None,
        "return_quant_tensor": False,
    }
    kinds = {nn.Linear: (qnn.QuantLinear, offered), nn.Conv2d: (qnn.QuantConv2d, offered)}
    whole = float_network(task)
    net: Any = layerwise_quantize(whole, kinds, name_blacklist=list(left_in_float(whole, task)))
    with torch.no_grad():
        net(task.inputs[:1])  # finds the scales
        with _mode(net, task.options["algorithm"]) as mode:
            for _ in range(mode.num_layers):
                for inputs in task.inputs.split(task.batch):
                    mode.model(inputs)
                mode.update()
        layers = {}
        for name in task.layers:
            found = net.get_submodule(name).quant_weight()
            layers[name] = per_row(found.value, bits, found.scale.expand(len(found.value), *found.scale.shape[1:]))
    return Found(layers)


def _mode(net: nn.Module, algorithm: str) -> Any:
    if algorithm == "gptq":
        return gptq_mode(net, act_order=True, use_quant_activations=False)
    return gpfq_mode(net, act_order=True, use_quant_activations=False, algorithm_impl=Qronos)


if __name__ == "__main__":
    run(quantize, ["brevitas"])
