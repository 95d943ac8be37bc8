"""The float model, and our packed one by each of its kernels."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from lightning_mpq import set_memory, use_kernels
from lightning_mpq.modules import stored_bytes

from .way import Way, relative_error

_WAYS = (
    ("plain", torch.float32),
    ("fast", torch.float32),
    ("auto-round", torch.float32),
    ("plain", torch.bfloat16),
    ("torch-int4", torch.bfloat16),
    ("torch-int8", torch.bfloat16),
)


def float_ways(model: nn.Module, inputs: Tensor) -> Iterator[Way]:
    """Yield the float model in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        net, values = copy.deepcopy(model).to(dtype), inputs.to(dtype)
        size = stored_bytes(net).total
        yield Way(str(dtype).removeprefix("torch."), partial(net, values), size, size)


def packed_ways(base: nn.Module, bits: int, inputs: Tensor, skipped: list[str]) -> Iterator[Way]:
    """Yield a packed model: dequantized at each call, kept dequantized, and by each kernel that takes it."""
    expected = base(inputs)
    for name, dtype in _WAYS:
        net = copy.deepcopy(base).to(dtype)
        note = ""
        if name == "fast":
            set_memory(net, "fast")
        elif name != "plain":
            with warnings.catch_warnings(action="ignore"):
                choices = use_kernels(net, name).choices
            used = sum(choice.kernel == name for choice in choices)
            if not used:
                reason = choices[-1].why  # of the last layer, which is a Linear one
                skipped.append(f"{name} at {bits} bits: {reason}")
                continue
            note = f"{used} of {len(choices)} layers"
        values = inputs.to(dtype)
        size = stored_bytes(net)
        yield Way(
            f"{name}, {str(dtype).removeprefix('torch.')}",
            partial(net, values),
            size.total,
            size.total + size.cached,
            relative_error(net(values), expected),
            note,
        )
