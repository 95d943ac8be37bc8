"""How far a fit goes: the user's own limits while the model is a float one, and those of fine-tuning after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from ...tools.distributed import broadcast


class FitLimits:
    """Reads and moves the limits of a Trainer's fit loop.

    In the float phase the Trainer has the limits that the user gave it, so that schedules which depend on them are
    those of a fit without fine-tuning. They are raised when the phase is over, and given back by `restore`.

    Lightning counts an epoch as processed before ``on_train_epoch_end``, and as completed after it.
    """

    def __init__(self, trainer: L.Trainer, quantize_at: int | None = None) -> None:
        """Take the user's limits.

        Args:
            trainer: The Trainer that is about to fit.
            quantize_at: Epoch before which the float phase ends; None for the end of the fit.

        Attributes:
            opened: Whether `open_for` had to raise a limit: the checkpoint's training was at its end.
        """
        self._trainer = trainer
        self._loop = trainer.fit_loop
        self.quantize_at = quantize_at
        self._own = (self._loop.max_epochs, self._loop.min_epochs, self._loop.epoch_loop.max_steps)
        self.opened = False
        if self._passed(0, 0, self._loop.max_epochs, self._loop.epoch_loop.max_steps, None):
            self._open(0)  # max_epochs=0: a trained model is to be quantized, and fine-tuned

    @property
    def epochs_done(self) -> int:
        """Epochs that were trained to their end."""
        current: Any = self._loop.epoch_progress.current
        return int(current.processed)

    def reached(self) -> bool:
        """Tell whether the float phase has come to the limits that it was given."""
        steps = self._loop.epoch_loop.global_step
        limits = (self._loop.max_epochs, self._loop.epoch_loop.max_steps, self.quantize_at)
        return self._passed(self.epochs_done, steps, *limits)

    def stopped_early(self) -> bool:
        """Tell whether somebody, such as EarlyStopping, has asked to stop, and the user's least epochs are done."""
        min_epochs, min_steps = self._own[1], self._loop.epoch_loop.min_steps
        enough = self.epochs_done >= (min_epochs or 0) and self._loop.epoch_loop.global_step >= (min_steps or 0)
        return bool(self._trainer.should_stop) and enough

    def time_is_over(self) -> bool:
        """Tell whether the user gave a time limit that has passed, by the clock of rank 0; all processes must ask."""
        callbacks: list[Any] = getattr(self._trainer, "callbacks", [])
        left = [callback.time_remaining() for callback in callbacks if isinstance(callback, Timer)]
        return broadcast(any(seconds is not None and seconds <= 0 for seconds in left))

    def keep_open(self) -> None:
        """Let the loop go on to the start of one more epoch, whatever asks to stop; called at the end of an epoch."""
        if self.reached():
            if self._loop.max_epochs != -1:
                self._loop.max_epochs = self.epochs_done + 1
            self._loop.epoch_loop.max_steps = -1
        self._loop.min_epochs = self.epochs_done + 1

    def open_for(self, checkpoint: Mapping[str, Any]) -> None:
        """Let a fit start from a checkpoint whose training was at its end; called before anything is restored.

        Otherwise Lightning would return without calling a hook. `extend` undoes it.
        """
        progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
        loop = self._loop
        limits = (loop.max_epochs, loop.epoch_loop.max_steps, self.quantize_at)
        if self._passed(progress["processed"], checkpoint["global_step"], *limits):
            self._open(progress["processed"])

    def extend(self, first_epoch: int, first_step: int, epochs: int, steps: int | None) -> None:
        """Set the limits of fine-tuning.

        Args:
            first_epoch: Epoch with which it began, or begins.
            first_step: Optimizer steps before it.
            epochs: How many epochs; 0 to go on to the user's own limits.
            steps: Optimizer steps instead of epochs.
        """
        max_epochs, min_epochs, max_steps = self._own
        self._loop.min_epochs = min_epochs
        if epochs or steps is not None:
            max_epochs = -1 if steps is not None else first_epoch + epochs
            max_steps = -1 if steps is None else first_step + steps
        self._loop.max_epochs, self._loop.epoch_loop.max_steps = max_epochs, max_steps

    def restore(self) -> None:
        """Give the Trainer its own limits back."""
        self._loop.max_epochs, self._loop.min_epochs, self._loop.epoch_loop.max_steps = self._own

    def _open(self, epochs: int) -> None:
        """Let the loop be entered after so many epochs, which its limits forbid."""
        self.opened = True
        if self._loop.max_epochs != -1:
            self._loop.max_epochs = epochs + 1
        self._loop.epoch_loop.max_steps = -1

    @staticmethod
    def _passed(epochs: int, steps: int, max_epochs: int | None, max_steps: int, quantize_at: int | None) -> bool:
        limits = [(epochs, quantize_at), (epochs, max_epochs), (steps, max_steps)]
        return any(limit is not None and limit != -1 and done >= limit for done, limit in limits)
