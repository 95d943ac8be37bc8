"""NVIDIA Model Optimizer's auto_quantize, weights alone, with a scale a row of the absmax."""

from __future__ import annotations

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from torch import nn

from ..adapting import Found, per_row, run
from ..grid import QuantizedLayer
from ..records import Task
from .networks import float_network, left_in_float

BITS = (2, 3, 4, 5, 6, 7, 8)


def quantize(task: Task) -> Found:
    """Return the network by the options ``method`` ("gradient" or "kl_div") and ``rescaled``.

    Its program is given scores that can be far below the solver's tolerances; ``rescaled`` scores are those times one
    number, such that their largest is 1e6, and go to the same program.
    """
    net, batches = float_network(task), task.batches()
    left = left_in_float(net, task)
    floats = sum(task.state[f"{name}.weight"].numel() for name in left)
    share = floats / (floats + sum(size.rows * size.columns for size in task.layers.values()))  # it counts as 16 bits
    constraints = {"effective_bits": (1 - share) * task.average_bits + 16 * share}
    _, state = mtq.auto_quantize(
        net,
        constraints=constraints,
        quantization_formats=[_format(bits) for bits in BITS],
        data_loader=batches,
        forward_step=lambda model, batch: model(batch[0]),
        loss_func=lambda outputs, batch: task.loss(outputs, batch[1]),
        num_calib_steps=1,  # of weights alone, which need no data
        num_score_steps=len(batches),
        disabled_layers=list(left) or None,
        method=task.options["method"],
    )
    if task.options["rescaled"]:
        state = _rescaled(state)
    chosen = mtq.get_auto_quantize_config(state, constraints)
    net = mtq.quantize(float_network(task), chosen)
    layers = {name: _layer(net.get_submodule(name), task.state[f"{name}.weight"]) for name in task.layers}
    return Found(layers, note="counts 16 bits for a layer that it leaves in float")


def _format(bits: int) -> dict[str, Any]:
    every = {"quantizer_name": "*", "enable": False}
    weights = {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}}
    return {"quant_cfg": [every, weights], "algorithm": "max"}


def _rescaled(state: dict[str, Any]) -> dict[str, Any]:
    found = copy.deepcopy(state)
    stats = found["candidate_stats"].values()
    largest = max(score for stat in stats for score in stat["scores"])
    for stat in stats:
        stat["scores"] = [score * 1e6 / largest for score in stat["scores"]]
    return found


def _layer(layer: nn.Module, weight: torch.Tensor) -> QuantizedLayer:
    quantizer: Any = layer.weight_quantizer
    if not quantizer.is_enabled:
        return per_row(weight.half().float(), 16, torch.ones(len(weight)))
    bits = quantizer.num_bits
    with torch.no_grad():
        rounded = quantizer(weight)
    return per_row(rounded, bits, quantizer.amax.flatten() / (2 ** (bits - 1) - 1))


if __name__ == "__main__":
    run(quantize, ["nvidia-modelopt", "pulp"])
