"""What fine-tuning refuses or warns of: settings that cannot work, and models that went wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelPruning
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from ...allocation import Budget
from ...errors import NonFiniteError
from ...finetune import FakeQuantization
from ...network.batchnorm import batchnorm_layers
from ...options import FinetuneOptions
from ...policy import BitPolicy
from ...tools.checks import shown
from .other_callbacks import callbacks_of


def check_epoch(quantize_at: int | None) -> None:
    """Refuse what is not the number of an epoch.

    Raises:
        ValueError: If ``quantize_at`` is neither None nor an integer of at least 0.
    """
    if quantize_at is None:
        return
    if isinstance(quantize_at, bool) or not isinstance(quantize_at, int) or quantize_at < 0:
        raise ValueError(f"quantize_at must be the number of an epoch, 0 or more, got {shown(quantize_at)}.")


def refuse_unfit(trainer: L.Trainer, module: L.LightningModule, options: FinetuneOptions) -> None:
    """Refuse a Trainer or a module that the options cannot work with; called in ``setup`` of a fit.

    Raises:
        ValueError: If there is nothing to train on, or an option needs automatic optimization.
    """
    if trainer.limit_train_batches == 0:
        raise ValueError("Fine-tuning needs training batches, and Trainer(limit_train_batches=0) gives none.")
    if options.distill and not module.automatic_optimization:
        raise ValueError(
            "Distillation adds to the loss that training_step returns, which manual optimization does not use. Set "
            "distill=0, or add it in your own step (lightning_mpq.finetune)."
        )


def refuse_pruning(trainer: L.Trainer, ours: Callback, fine_tuned: bool) -> None:
    """Refuse a ``ModelPruning`` that still computes weights from masks when they are to be quantized.

    Args:
        trainer: Its callbacks are asked.
        ours: The callback that quantizes.
        fine_tuned: Whether there is fine-tuning, which begins before the fit ends.

    Raises:
        ValueError: If there is one, and fine-tuning or the order of callbacks comes before its end.
    """
    callbacks = callbacks_of(trainer)
    for other in callbacks if fine_tuned else callbacks[callbacks.index(ours) + 1 :]:
        if isinstance(other, ModelPruning):
            raise ValueError(
                "ModelPruning makes its zeros permanent at the end of the fit; until then weights are computed from "
                "masks, which cannot be quantized. List it before MixedPrecisionQuantization and set finetune_epochs=0 "
                "(zeros would not outlast fine-tuning)."
            )


def warn_of_weights_alone(trainer: L.Trainer) -> None:
    """Say so if checkpoints of fine-tuning will be written that cannot become the packed model of their step."""
    if any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks):
        rank_zero_warn(
            "ModelCheckpoint(save_weights_only=True) keeps weights without the scales and the policy that they are "
            "fine-tuned with, and what they compute in float is not what validation has measured. Leave it out: "
            "lightning_mpq.load packs whole checkpoints of any step.",
            category=UserWarning,
        )


def warn_of_paused_statistics(module: nn.Module) -> None:
    """Say so if BatchNorm statistics that are to be averaged on will not be, because their layers are not training.

    Lightning trains layers in the mode that they are handed over in.

    Args:
        module: At the start of fine-tuning.
    """
    layers = batchnorm_layers(module)
    if paused := [name for name, layer in layers.items() if not layer.training]:
        rank_zero_warn(
            f"{len(paused)} of {len(layers)} BatchNorm layers ({paused[0]!r}, ...) are in evaluation mode, so their "
            "statistics stay as they are while the weights move, and fine-tuning diverges sooner. Call module.train() "
            "before the fit, or say that it is meant: FinetuneOptions(batchnorm='frozen').",
            category=UserWarning,
        )


def refuse_diverged(handle: FakeQuantization, learning_rate: float) -> None:
    """Refuse to go on from weights or scales that are NaN or infinite, before a checkpoint keeps them.

    Args:
        handle: The fake-quantized layers.
        learning_rate: The factor that was given.

    Raises:
        NonFiniteError: If there are any.
    """
    try:
        handle.quantized_rows()
        _ = handle.ranges
    except NonFiniteError as error:
        raise NonFiniteError(
            f"Fine-tuning has diverged. {error} Lower the learning rate (FinetuneOptions(learning_rate="
            f"{learning_rate:g}) is a factor on that of the optimizers) or clip gradients "
            "(Trainer(gradient_clip_val=1.0)), and go on from the checkpoint before."
        ) from error


def refuse_lost_layers(handle: FakeQuantization, weights: Set[str]) -> None:
    """Refuse to go on if layers that are being fine-tuned are no longer in the model.

    Args:
        handle: The fake-quantized layers.
        weights: The weights that it began with.

    Raises:
        ValueError: If one is missing.
    """
    if lost := sorted(weights - set(handle.weights)):
        raise ValueError(
            f"Layer {lost[0]!r} was replaced during fine-tuning (in a hook of the module?), so that its learned "
            "scales are lost. Replace layers before quantization, or keep it in float "
            f"(candidates=CandidateOptions(keep_float=[{lost[0]!r}]))."
        )


def plain_budget(budget: Budget) -> dict[str, Any]:
    """Return those bounds of a budget that are numbers, for a checkpoint."""
    return {key: value for key, value in vars(budget).items() if isinstance(value, (int, float))}


def refuse_another_policy(state: Mapping[str, Any], given: BitPolicy | None, budget: Budget) -> None:
    """Refuse to go on fine-tuning under another policy than the one a checkpoint was quantized with.

    Args:
        state: The callback's state in the checkpoint.
        given: The policy that the user gave to be followed, if any.
        budget: What the policy would be made for otherwise.

    Raises:
        ValueError: If policy or budget differ from those of the checkpoint.
    """
    if (state.get("finetuning") or {}).get("phase") != "training":
        return
    if given is not None and given != BitPolicy.from_json(state["policy"]):
        raise ValueError(
            "The checkpoint was fine-tuned under another policy than policy=. Leave policy out to go on with the "
            "checkpoint's own, or start from a checkpoint of the float phase."
        )
    own, saved = plain_budget(budget), dict(state["budget"])
    if "bit_operations" not in saved:
        saved.pop("activation_bits", None)  # which 0.1 wrote always, and which says nothing without
        own.pop("activation_bits", None)
    if given is None and saved != own:
        raise ValueError(
            f"The checkpoint was fine-tuned under the budget {saved}, and the callback has {own}. Go on with "
            "the same budget, or start from a checkpoint of the float phase."
        )
