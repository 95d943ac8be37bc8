"""One way to run a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Way:
    """One way to run a model.

    Attributes:
        name: What it is called in tables.
        call: Computes the outputs once.
        stored: Bytes on disk of parameters and buffers, or of the exported file.
        held: Bytes in memory between calls: weights and caches, or what a session has added to the process.
        error: Greatest difference from the packed model's plain outputs, relative to the greatest output; None for
            the float model.
        note: Kernel that multiplied, containers, or whatever else explains the row.
    """

    name: str
    call: Callable[[], Any]
    stored: int
    held: int | None
    error: float | None = None
    note: str = ""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the greatest difference relative to the greatest expected output."""
    wide = expected.to(torch.float32)
    return float((found.to(torch.float32) - wide).abs().max() / wide.abs().max())
