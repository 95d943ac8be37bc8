"""Calibration that is shared out among processes, on a small network with BatchNorm statistics of its own."""

from __future__ import annotations

import torch
from torch import nn

from lightning_mpq.tools import distributed


def message_of(function, *arguments):
    """Return type, text and notes of what a function raises."""
    try:
        function(*arguments)
    except Exception as error:
        return type(error).__name__, str(error), getattr(error, "__notes__", [])
    return None


def network() -> nn.Module:
    """Two convolutions with BatchNorm and a head, its statistics those of some data."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten()
    )
    model = model.append(nn.Linear(16, 3))
    for _ in range(10):
        model(torch.randn(32, 1, 6, 6))
    return model.eval()


def batches(count: int = 5) -> list:
    generator = torch.Generator().manual_seed(1)
    sizes = [12 + 3 * number for number in range(count)]  # uneven
    return [
        (torch.randn(size, 1, 6, 6, generator=generator), torch.randint(3, (size,), generator=generator))
        for size in sizes
    ]


def own(items: list) -> list:
    """Return this rank's batches, interleaved as a DistributedSampler would."""
    return items[distributed.rank() :: distributed.world_size()]
