"""What fine-tuning gains: the task loss on the calibration batches where it begins and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ...pipeline.loss_change import LossChange
from ...pipeline.pipeline import Pipeline
from ...report import FinetuningRow

_TOLERATED = 1.05
"""Factor by which the task loss may rise without a warning, as it may when the float model's outputs are learned."""


def task_loss(module: L.LightningModule, batches: Sequence[Any], pipeline: Pipeline) -> float | None:
    """Return the task loss of a model as it is now, in evaluation mode; None where it cannot be told.

    Under manual optimization a training step trains, so only a ``loss_fn`` can tell it. Every process must call this.

    Args:
        module: The model.
        batches: This process's calibration batches.
        pipeline: Knows the user's ``forward_fn`` and ``loss_fn``.
    """
    if pipeline.loss_fn is None and not module.automatic_optimization:
        return None
    try:
        change = LossChange(module, batches, "task", forward_fn=pipeline.forward_fn, loss_fn=pipeline.loss_fn)
    except Exception as error:  # a fit that would do without this figure must not end for it
        rank_zero_warn(
            "The task loss on the calibration batches could not be measured, so nobody will say whether fine-tuning "
            f"raised it ({type(error).__name__}: {error}). Give loss_fn= if training_step needs more than a batch.",
            category=UserWarning,
        )
        return None
    return change.reference


def judged(before: float, after: float | None, learning_rate: float) -> FinetuningRow | None:
    """Return the row of a fine-tuning that is over, and say so if the model was better where it began.

    Args:
        before: Task loss of the rounded and repaired model.
        after: Task loss of the packed model; None if it is not known.
        learning_rate: The factor that was given.
    """
    if after is None:
        return None
    told = f"task loss on the calibration batches {before:.4g} -> {after:.4g}"
    rank_zero_info(f"MixedPrecisionQuantization: fine-tuning is over: {told}")
    if not after <= max(before, before * _TOLERATED):
        rank_zero_warn(
            f"Fine-tuning has made the model worse: {told}. Lower the learning rate (FinetuneOptions(learning_rate="
            f"{learning_rate:g}) is a factor on that of the optimizers), clip gradients "
            "(Trainer(gradient_clip_val=1.0)), or quantize without fine-tuning.",
            category=UserWarning,
        )
    return FinetuningRow(before, after)
