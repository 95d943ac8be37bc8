"""The small network that is killed, interrupted and mutated, and its data."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn

import lightning_mpq as mpq

POLICY = mpq.BitPolicy({"0": mpq.WeightScheme(3), "2": mpq.WeightScheme(2, 4, "half")})


class Module(mpq.PackedCheckpoints, L.LightningModule):
    """A network whose checkpoints are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()


def network() -> nn.Sequential:
    """Return a float network of two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def packed() -> nn.Module:
    """Return it packed."""
    return mpq.quantize(network(), POLICY)


def batches() -> list[Tensor]:
    """Return two calibration batches."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 8, generator=generator) for _ in range(2)]


def profiled(folder: Path, bits: tuple[int, ...] = (2, 4)) -> mpq.TaylorModel:
    """Return a profile that is kept in a folder."""
    torch.manual_seed(0)
    return mpq.profile(network(), batches(), bits=bits, likelihood=mpq.Categorical(), cache_dir=folder)
