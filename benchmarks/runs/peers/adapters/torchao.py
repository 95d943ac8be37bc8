"""torchao's intx weights: one width everywhere, a scale a row found by half-quadratic splitting, without samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, PerAxis, quantize_
from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task
from .networks import float_network


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits."""
    net, bits = float_network(task), widest_uniform(task)
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerAxis(0),
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )
    quantize_(net, config, filter_fn=lambda layer, name: isinstance(layer, nn.Linear) and name in task.layers)
    layers = {}
    for name in task.layers:
        weight: Any = net.get_submodule(name).weight
        zero = weight.zero_point.flatten() + 2 ** (bits - 1)
        middle = bool((weight.zero_point == 0).all())
        layers[name] = per_row(weight.dequantize(), bits, weight.scale.flatten(), None if middle else zero)
    return Found(layers)


if __name__ == "__main__":
    run(quantize, ["torchao"])
