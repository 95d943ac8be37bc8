"""What rounding adds to a weight, as exact as it can be told."""

from __future__ import annotations

import torch
from torch import Tensor

from ...quantizers import QuantizedRows
from ...tools.slices import some_of

_AT_ONCE = 2**18
"""Weights whose change is computed at once, in float64 2 MiB."""


def write_change(quantized: QuantizedRows, rows: Tensor, change: Tensor) -> None:
    """Write Q(w) - w in the type of w, [R, C], rounded once; some rows at a time."""
    wide = _exact_type(quantized, rows)
    for part in some_of(rows, _AT_ONCE):
        own, place = quantized.part(part), change[part]
        if place.dtype == wide and place.is_contiguous() and own.codes.device == place.device:
            own.write(place)
            place.sub_(rows[part])
        else:
            place.copy_(own.dequantize(wide).to(rows.device).sub_(rows[part]))


def _exact_type(quantized: QuantizedRows, rows: Tensor) -> torch.dtype:
    """Return a type in which quantized weights are exact: float32 if scales have 16 bits, as levels have 9 at most."""
    narrow = quantized.scale.element_size() == 2 and rows.element_size() <= 4
    return torch.float32 if narrow or rows.device.type == "mps" else torch.float64
