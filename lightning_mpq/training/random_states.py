"""Random states in checkpoints, so that a resumed fit shuffles and drops out as the uninterrupted one would."""

from __future__ import annotations

import json
import random
from typing import Any

import lightning as L
import numpy as np
import torch


class RandomStates:
    """What the random generators are to be set to at the start of the next epoch.

    Attributes:
        state: What `now` returned before; None to leave the generators as they are.
    """

    state: dict[str, Any] | None = None
    _drawn_before = False

    @staticmethod
    def now() -> dict[str, Any]:
        """Return the states of Python, numpy and torch as text and tensors."""
        kind, keys, *rest = np.random.get_state()
        assert isinstance(keys, np.ndarray)
        states: dict[str, Any] = {
            "python": json.dumps(random.getstate()),
            "numpy": json.dumps([kind, keys.tolist(), *rest]),
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            states["cuda"] = torch.cuda.get_rng_state_all()
        return states

    def restore(self, trainer: L.Trainer) -> None:
        """Set the generators, once, at the start of an epoch; `redraw` follows behind all that is done there.

        Only for a single process: a checkpoint holds the states of one.
        """
        state, self.state = self.state, None
        if state is None or trainer.world_size > 1:
            return
        version, internal, gauss = json.loads(state["python"])
        random.setstate((version, tuple(internal), gauss))
        kind, keys, *rest = json.loads(state["numpy"])
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
        torch.set_rng_state(state["torch"].cpu())
        if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
        self._drawn_before = True

    def redraw(self, trainer: L.Trainer) -> None:
        """Draw the order of the epoch's batches, if that was done before the generators were set."""
        again, self._drawn_before = self._drawn_before, False
        loader, fetcher = trainer.fit_loop._combined_loader, trainer.fit_loop._data_fetcher
        if again and loader is not None and fetcher is not None and not loader._state_dicts():
            iter(fetcher)
