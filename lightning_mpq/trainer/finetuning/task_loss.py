"""What fine-tuning gains: the task loss on the calibration batches where it begins and where it ends."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from ...network.calibration import Calibration
from ...network.loss_change import LossChange
from ...report.rows import FinetuningRow

_TOLERATED = 1.05
"""Factor by which the task loss may rise without a warning, as it may when the float model's outputs are learned."""


def task_loss(calibration: Calibration, automatic: bool) -> float | None:
    """Return the task loss of a model as it is now, in evaluation mode; None where it cannot be computed.

    Under manual optimization a training step trains, so only a ``loss_fn`` can tell it. Every process must call this.

    Args:
        calibration: The model and this process's calibration batches.
        automatic: Whether Lightning steps.
    """
    if calibration.loss_fn is None and not automatic:
        return None
    try:
        change = LossChange(calibration, "task")
    except Exception as error:  # a fit that would do without this figure must not end for it
        rank_zero_warn(
            "The task loss on the calibration batches could not be measured, so nobody will say whether fine-tuning "
            f"raised it ({type(error).__name__}: {error}). Give loss_fn= if training_step needs more than a batch.",
            category=UserWarning,
        )
        return None
    return change.reference


def finetuning_row(before: float, after: float | None, learning_rate: float) -> FinetuningRow | None:
    """Return the row of a fine-tuning that is over, and say so if the model was better before.

    Args:
        before: Task loss of the rounded and repaired model.
        after: Task loss of the packed model; None if it is not known.
        learning_rate: The factor that was given.
    """
    if after is None:
        return None
    change = f"task loss on the calibration batches {before:.4g} -> {after:.4g}"
    rank_zero_info(f"MixedPrecisionQuantization: fine-tuning is over: {change}")
    if not after <= max(before, before * _TOLERATED):
        rank_zero_warn(
            f"Fine-tuning has made the model worse: {change}. Lower the learning rate (FinetuneOptions(learning_rate="
            f"{learning_rate:g}) is a factor on that of the optimizers), clip gradients "
            "(Trainer(gradient_clip_val=1.0)), or quantize without fine-tuning.",
            category=UserWarning,
        )
    return FinetuningRow(before, after)
