"""How much of what a packed model is given lies beyond the ranges of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.sites import inputs_changed
from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..network.isolation import isolated
from ..tools.distributed import sum_over_ranks
from .inspection import packed_layers
from .packed import PackedLayer


def clipped_inputs(
    model: nn.Module, batches: Iterable[Any] | Calibration, *, forward_fn: ForwardFn | None = None
) -> dict[str, float]:
    """Return which part of its input values each layer of a packed model clips, on any data.

    Ranges are found on calibration data; on data that reaches further, values are cut to the range. Where
    torch.distributed is in use, every process calls this with its own batches, and all get the parts over all.

    Args:
        model: A packed model, left as it was.
        batches: Batches to look at, such as validation data.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        Layer name to a part in [0, 1], for the layers that store a range; 0 where a layer is not called.

    Raises:
        ValueError: If no layer stores a range, or there is no batch.
    """
    layers = {name: layer for name, layer in packed_layers(model).items() if layer.input_scale is not None}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer that stores a range of its inputs.")
    counts = {name: torch.zeros(2, dtype=torch.float64) for name in layers}

    def count(name: str, inputs: Tensor) -> Tensor:
        low, high = _ends(layers[name])
        outside = ((inputs < low) | (inputs > high)).sum()
        counts[name] += torch.tensor([float(outside), float(inputs.numel())], dtype=torch.float64)
        return inputs

    with inputs_changed(layers, count), isolated(model), torch.no_grad():
        Calibration.of(model, batches, forward_fn=forward_fn).run("counting clipped inputs")
    total = sum_over_ranks(torch.stack(list(counts.values())))
    return {name: float(outside / max(values, 1.0)) for name, (outside, values) in zip(layers, total, strict=True)}


def _ends(layer: PackedLayer) -> tuple[float, float]:
    """Return the least and the largest value that is rounded to the nearest level."""
    assert layer.input_scheme is not None
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    scale, zero_point = float(layer.input_scale), int(layer.input_zero_point)
    return (-zero_point - 0.5) * scale, (2**layer.input_scheme.bits - 0.5 - zero_point) * scale
