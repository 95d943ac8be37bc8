"""Random states in checkpoints, so that a resumed fit shuffles and drops out as the uninterrupted one would."""

from __future__ import annotations

import json
import random
from typing import Any

import lightning as L
import numpy as np
import torch

from ...tools.distributed import gather
from .mid_epoch import draw_order, resumes_by_itself, skip_batches


class RandomStates:
    """Remembers random generators, of every process its own, for a fit that goes on from a checkpoint.

    Two moments count: the present one, and the one before the order of the epoch's batches was drawn, from which a fit
    that goes on in the midst of an epoch draws the same order again.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_order: dict[str, Any] | None = None
        self._order_is_drawn = False
        self._draw_again = False

    def state(self) -> list[dict[str, Any]]:
        """Return both moments, by rank; all processes must ask."""
        return gather({"now": generator_states(), "before_order": self._before_order})

    def load(self, trainer: L.Trainer, states: list[dict[str, Any]] | None) -> None:
        """Take from a checkpoint what is this process's own; nothing if there were more or fewer processes."""
        if states is not None and len(states) == trainer.world_size:
            self._loaded = states[trainer.global_rank]

    def before_fit(self) -> None:
        """Note the moment before Lightning draws the order of the first epoch, which it does ahead of its start."""
        self._before_order, self._order_is_drawn = generator_states(), True

    def before_epoch(self) -> None:
        """Set the generators, once, at the start of the epoch that follows a checkpoint."""
        if self._loaded is not None:
            set_generators(self._loaded["now"])
            self._loaded, self._draw_again = None, True

    def before_order(self, trainer: L.Trainer) -> None:
        """Note the moment after all that is done at the start of an epoch, and draw again what was drawn too early."""
        if self._draw_again or not self._order_is_drawn:
            self._before_order = generator_states()
        if self._draw_again and not resumes_by_itself(trainer):
            draw_order(trainer)
        self._draw_again = self._order_is_drawn = False

    def within_epoch(self, trainer: L.Trainer, batches: int) -> None:
        """Go on after so many batches of an epoch: with the same order, and the generators as they were there."""
        if self._loaded is None:
            return
        loaded, self._loaded = self._loaded, None
        self._before_order, self._order_is_drawn = loaded["before_order"], False
        if batches and not resumes_by_itself(trainer):
            set_generators(loaded["before_order"])
            skip_batches(trainer, batches)
        set_generators(loaded["now"])


def generator_states() -> dict[str, Any]:
    """Return the states of Python, numpy, torch and the present CUDA device as text and tensors."""
    kind, keys, *rest = np.random.get_state()
    assert isinstance(keys, np.ndarray)
    states: dict[str, Any] = {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([kind, keys.tolist(), *rest]),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_generators(states: dict[str, Any]) -> None:
    """Set the generators to what `generator_states` returned."""
    version, internal, gauss = json.loads(states["python"])
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = json.loads(states["numpy"])
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
