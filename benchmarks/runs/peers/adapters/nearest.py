"""One width everywhere, rounded to nearest with a scale a row: of the absmax, or of the least squared error."""

from __future__ import annotations

import torch
from torch import Tensor

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task

RATIOS = torch.linspace(0.3, 1.0, 71)
"""Of the absmax, that are tried for the least squared error."""


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits; the option ``clip`` is "absmax" or "mse"."""
    bits = widest_uniform(task)
    layers = {}
    for name in task.layers:
        weight = task.state[f"{name}.weight"]
        rows = weight.flatten(1)
        ratios = torch.ones(1) if task.options["clip"] == "absmax" else RATIOS
        trials = torch.stack([_scales(rows, bits) * ratio for ratio in ratios])
        errors = torch.stack([(rounded(rows, scale, bits) - rows).square().sum(1) for scale in trials])
        scale = trials.gather(0, errors.argmin(0)[None, :, None])[0]
        layers[name] = per_row(rounded(rows, scale, bits).view_as(weight), bits, scale)
    return Found(layers)


def rounded(rows: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return rows on the nearest of the integers from -2**(bits - 1) times their scales, [rows, 1]."""
    half = 2 ** (bits - 1)
    return (rows / scale).round().clamp(-half, half - 1) * scale


def _scales(rows: Tensor, bits: int) -> Tensor:
    largest = rows.abs().amax(1, keepdim=True)
    return torch.where(largest > 0, largest, 1.0) / (2 ** (bits - 1) - 1)


if __name__ == "__main__":
    run(quantize, [])
