"""The states of the generators that a forward pass may draw from: Python's, NumPy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class RandomStates:
    """The states at some moment, those of the CUDA devices that a model lies on among them.

    Attributes:
        python: State of ``random``.
        numpy: State of ``np.random``.
        cpu: State of torch on the CPU.
        cuda: Number of a device to its state.
    """

    python: Any
    numpy: Any
    cpu: Tensor
    cuda: Mapping[int, Tensor]

    @classmethod
    def now(cls, model: nn.Module) -> RandomStates:
        """Return the present states."""
        cuda = {index: torch.cuda.get_rng_state(index) for index in _cuda_devices(model)}
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    @classmethod
    def seeded(cls, model: nn.Module, seed: int) -> RandomStates:
        """Return the states at a seed; the present ones stay."""
        cuda = {index: Generator(f"cuda:{index}").manual_seed(seed).get_state() for index in _cuda_devices(model)}
        numpy = np.random.RandomState(seed).get_state()
        return cls(random.Random(seed).getstate(), numpy, Generator().manual_seed(seed).get_state(), cuda)

    def set(self) -> None:
        """Let the generators go on from these states."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)


def _cuda_devices(model: nn.Module) -> list[int]:
    if not torch.cuda.is_initialized():  # no need to look at every parameter of the model
        return []
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
