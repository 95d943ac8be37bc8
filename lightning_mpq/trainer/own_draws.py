"""Randomness of its own for the draw of calibration batches: the same batches whatever was drawn before, and after.

A fit that goes on from the checkpoint of its last float step then calibrates on the batches that the uninterrupted one
takes, finds their measurements in the cache, and trains on as if nothing had been drawn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from ..tools.clean_up import afterwards


@contextmanager
def own_draws(loader: Iterable[Any], seed: int) -> Iterator[None]:
    """Draw from a loader as a first epoch would after seeding; generators and samplers are then as they were before.

    Args:
        loader: Shuffled by Python's, NumPy's or PyTorch's generator, by one of its own, or by the epoch's number.
        seed: Of all of them.
    """
    parts = _parts(loader)
    generators = {
        id(own): own for part in parts if isinstance(own := getattr(part, "generator", None), torch.Generator)
    }
    states = {key: generator.get_state() for key, generator in generators.items()}
    epochs = [(part, part.epoch) for part in parts if hasattr(part, "set_epoch") and hasattr(part, "epoch")]

    def restore() -> None:
        for key, generator in generators.items():
            generator.set_state(states[key])
        for part, epoch in epochs:
            part.set_epoch(epoch)

    with isolate_rng(), afterwards(restore):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        for generator in generators.values():
            generator.manual_seed(seed)
        for part, _ in epochs:
            part.set_epoch(0)
        yield


def _parts(loader: Any) -> list[Any]:
    """Return a loader and what it may draw by: its samplers, and the data itself."""
    samplers = [getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    found = [loader, *samplers, getattr(loader, "dataset", None)]
    return list({id(part): part for part in found if part is not None}.values())
