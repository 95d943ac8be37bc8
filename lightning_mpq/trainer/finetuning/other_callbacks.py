"""Other callbacks of a fit that fine-tunes: those that average weights are paused, EarlyStopping starts anew."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    Callback,
    EarlyStopping,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_info


class AveragingCallbacks:
    """The callbacks of a Trainer that average weights, all of which must be listed before ours.

    Averages are written into the model when the float phase ends. Averaging goes no further: the learned scales would
    not be averaged with the weights, and a learning rate that decays to zero does what an average is for.
    """

    def __init__(self, trainer: L.Trainer, ours: Callback) -> None:
        """Find them.

        Raises:
            ValueError: If one is listed after ``ours``, which would quantize the weights before the average.
        """
        callbacks = callbacks_of(trainer)
        for other in callbacks[callbacks.index(ours) + 1 :]:
            if isinstance(other, (StochasticWeightAveraging, WeightAveraging)):
                raise ValueError(
                    f"{type(other).__name__} writes its averaged weights at the end of training and is listed after "
                    "MixedPrecisionQuantization, which would quantize the weights before. List it first."
                )
        self._all: list[Callback] | None = None

    def finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let them write their averages into the model, then pause them."""
        for callback in _averaging(trainer):
            # A fit resumed after the epoch in which SWA measures BatchNorm has nothing to undo, and SWA would fail.
            swa_with_batchnorm = getattr(callback, "_model_contains_batch_norm", False)
            if not swa_with_batchnorm or hasattr(callback, "_accumulate_grad_batches"):
                callback.on_train_end(trainer, module)
        self.pause(trainer)

    def pause(self, trainer: L.Trainer) -> None:
        """Take them from the Trainer until `resume`."""
        found = _averaging(trainer)
        if not found:
            return
        names = ", ".join(type(callback).__name__ for callback in found)
        rank_zero_info(
            f"MixedPrecisionQuantization: {names} is paused during fine-tuning; its averages are in the model."
        )
        self._all = list(callbacks_of(trainer))
        trainer.callbacks = [callback for callback in self._all if callback not in found]  # type: ignore[attr-defined]

    def resume(self, trainer: L.Trainer) -> None:
        """Give them back to the Trainer, in their order."""
        if self._all is not None:
            trainer.callbacks, self._all = self._all, None  # type: ignore[attr-defined]


def restart_early_stopping(trainer: L.Trainer) -> None:
    """Let EarlyStopping compare fine-tuned models with each other, not with the float one."""
    for callback in callbacks_of(trainer):
        if isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op == torch.lt else -worst


def note_groups(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Let callbacks that unfreeze parameters by and by note the optimizers' groups before ours are added to them.

    They do so at their first epoch, by names of the module's parameters, of which learned scales are none.
    """
    for callback in callbacks_of(trainer):
        if isinstance(callback, BaseFinetuning):
            for number, optimizer in enumerate(trainer.optimizers):
                callback._store(module, number, len(optimizer.param_groups), optimizer.param_groups)


def callbacks_of(trainer: L.Trainer) -> list[Any]:
    """Return a Trainer's callbacks in their order."""
    return getattr(trainer, "callbacks", [])


def _averaging(trainer: L.Trainer) -> list[Any]:
    return [c for c in callbacks_of(trainer) if isinstance(c, (StochasticWeightAveraging, WeightAveraging))]
