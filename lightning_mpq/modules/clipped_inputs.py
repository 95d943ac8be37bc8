"""How much of what a packed model is given lies beyond the ranges of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..inputs.operations import PRODUCTS, Site
from ..inputs.quantizer import InputRange, quantize_inputs
from ..inputs.sites import inputs_changed
from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..network.isolation import isolated
from ..network.tokens import real_operand, real_tokens, token_mask
from ..schemes import InputScheme
from ..tools.distributed import sum_over_ranks
from ..tools.kinds import checked_kinds
from .inspection import packed_layers
from .packed import PackedLayer
from .quantized_operands import operand_ranges, operands_replaced


@checked_kinds
def clipped_inputs(
    model: nn.Module, batches: Iterable[Any] | Calibration, *, forward_fn: ForwardFn | None = None
) -> dict[str, float]:
    """Return which part of its input values each layer of a packed model clips, and each sum or average, on any data.

    Ranges are found on calibration data; on data that reaches further, values are cut to the range. Tokens that a
    batch's ``attention_mask`` hides count as little as there: not at all. Where
    torch.distributed is in use, every process calls this with its own batches, and all get the parts over all.

    Args:
        model: A packed model, left as it was.
        batches: Batches to look at, such as validation data.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        Layer name to a part in [0, 1], for the layers that store a range; 0 where a layer is not called. What a sum or
        average reads is there under its name and a number, as in ``"layer1.0.add0:1"``.

    Raises:
        ValueError: If nothing stores a range, or there is no batch.
    """
    layers = {name: layer for name, layer in packed_layers(model).items() if layer.input_scale is not None}
    ranges = {name: _range(layer) for name, layer in layers.items()} | operand_ranges(model)
    if not ranges:
        raise ValueError(
            f"{type(model).__name__} has no packed layer that stores a range of its inputs, and no sum or product that "
            "reads quantized tensors."
        )
    counts = {name: torch.zeros(2, dtype=torch.float64) for name in ranges}
    products = {name for name in ranges.keys() - layers.keys() if Site.named(name.rpartition(":")[0]).kind in PRODUCTS}
    calibration = Calibration.of(model, batches, forward_fn=forward_fn)
    mask: Tensor | None = None

    def count(name: str, counted: Tensor) -> None:
        low, high = _ends(*ranges[name])
        outside = ((counted < low) | (counted > high)).sum()
        counts[name] += torch.tensor([float(outside), float(counted.numel())], dtype=torch.float64)

    def count_inputs(name: str, inputs: Tensor) -> Tensor:
        count(name, real_tokens(inputs, mask) if isinstance(layers[name], nn.Linear) else inputs)
        return inputs

    def count_operand(name: str, operand: Tensor) -> Tensor:
        count(name, real_operand(operand, mask) if name in products else operand)
        scheme, found = ranges[name]
        return quantize_inputs(operand, scheme, *found.tensors(operand.device))

    def forward(number: int, batch: Any) -> None:
        nonlocal mask
        mask = token_mask(batch)
        calibration.forward(batch, number)

    with inputs_changed(layers, count_inputs), operands_replaced(count_operand), isolated(model), torch.no_grad():
        calibration.each(forward, "counting clipped inputs")
    total = sum_over_ranks(torch.stack(list(counts.values())))
    return {name: float(outside / max(values, 1.0)) for name, (outside, values) in zip(ranges, total, strict=True)}


def _range(layer: PackedLayer) -> tuple[InputScheme, InputRange]:
    assert layer.input_scheme is not None
    assert layer.input_scale is not None
    assert layer.input_zero_point is not None
    return layer.input_scheme, InputRange(float(layer.input_scale), int(layer.input_zero_point))


def _ends(scheme: InputScheme, found: InputRange) -> tuple[float, float]:
    """Return the least and the largest value that is rounded to the nearest level."""
    return (-found.zero_point - 0.5) * found.scale, (2**scheme.bits - 0.5 - found.zero_point) * found.scale
