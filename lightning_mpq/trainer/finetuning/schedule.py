"""The part of a fit that is fine-tuning: where it began, how long it is, and how much of it is done."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, isfinite

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

_FEW_STEPS = 10


@dataclass(frozen=True)
class Schedule:
    """Beginning and length of fine-tuning.

    Attributes:
        epochs: How many; 0 to go on to the Trainer's own limits.
        steps: Optimizer steps instead of epochs.
        first_epoch: Epoch with which it began.
        first_step: Optimizer steps before it.
    """

    epochs: int
    steps: int | None
    first_epoch: int = 0
    first_step: int = 0

    def from_here(self, epoch: int, step: int) -> Schedule:
        """Return the same length with another beginning."""
        return replace(self, first_epoch=epoch, first_step=step)

    @property
    def limits(self) -> tuple[int, int, int, int | None]:
        """What `FitLimits.extend` takes."""
        return self.first_epoch, self.first_step, self.epochs, self.steps

    def progress(self, trainer: L.Trainer, batch_idx: int) -> float:
        """Return how much of it is done, from 0 to 1."""
        if self.steps is not None:
            return (trainer.global_step - self.first_step) / self.steps
        total = self.epochs or (trainer.fit_loop.max_epochs or 0) - self.first_epoch
        batches = float(trainer.num_training_batches)
        part = batch_idx / batches if isfinite(batches) else 0.0
        return (trainer.current_epoch - self.first_epoch + part) / max(total, 1)

    def announce(self, trainer: L.Trainer) -> None:
        """Say that it begins, and warn if it is short."""
        batches, steps = float(trainer.num_training_batches), self.steps
        if steps is None and isfinite(batches):
            steps = self.epochs * ceil(batches / trainer.accumulate_grad_batches)
            if 0 < steps < _FEW_STEPS and not is_dry_run(trainer):
                rank_zero_warn(
                    f"Fine-tuning has {steps} optimizer steps only, which recovers little; let it take more epochs.",
                    category=UserWarning,
                )
        rank_zero_info(f"MixedPrecisionQuantization: fine-tuning begins in epoch {self.first_epoch}")


def schedule_of(trainer: L.Trainer, epochs: int, steps: int | None) -> Schedule:
    """Return the length that fine-tuning has: the given one, or an epoch or a step of it under ``fast_dev_run``."""
    if is_dry_run(trainer):
        return Schedule(min(epochs, 1), None if steps is None else 1)
    return Schedule(epochs, steps)


def is_dry_run(trainer: L.Trainer) -> bool:
    """Tell whether the Trainer only tries everything once."""
    return bool(getattr(trainer, "fast_dev_run", False))
