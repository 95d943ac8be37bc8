"""HQQ: one width everywhere, scale and zero point a row found by half-quadratic splitting, without samples."""

from __future__ import annotations

import torch
from hqq.core.quantize import Quantizer

from ..adapting import Found, per_row, run
from ..records import Task

BITS = (8, 6, 5, 4, 3, 2)
"""The whole widths that it has."""


def quantize(task: Task) -> Found:
    """Return the network at the largest of its widths that is within the average."""
    bits = next(bits for bits in BITS if bits <= task.average_bits)
    layers = {}
    for name in task.layers:
        weight = task.state[f"{name}.weight"]
        codes, meta = Quantizer.quantize(
            weight,
            nbits=bits,
            group_size=weight.shape[1],
            axis=1,
            bitpack=False,
            compute_dtype=torch.float32,
            device="cpu",
        )
        layers[name] = per_row(Quantizer.dequantize(codes, meta), bits, meta["scale"], meta["zero"])
    return Found(layers, note="stores a zero point beside each scale")


if __name__ == "__main__":
    run(quantize, ["hqq"])
