"""Trainer checkpoints that were written after quantization: which policy they follow, and how to load them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CorruptModelError
from ..finetune.resume import pack_finetuned
from ..modules import empty_packed_model, restore_layers
from ..policy import BitPolicy


def policy_in_checkpoint(checkpoint: Any) -> BitPolicy | None:
    """Return the policy behind the packed layers in a Trainer checkpoint; None if its model is a float one.

    Raises:
        CorruptModelError: If it holds packed layers and no policy of ours.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return None
    if not any(key.endswith("packed_codes") for key in checkpoint["state_dict"]):
        return None
    state = callback_state(checkpoint)
    if state is not None and "policy" in state:
        return BitPolicy.from_json(state["policy"])
    raise CorruptModelError(
        "The checkpoint holds packed layers, but no policy of MixedPrecisionQuantization, which says how to read "
        "them. Save with the callback in Trainer(callbacks=...), or use lightning_mpq.save."
    )


def callback_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return what the callback wrote into a Trainer checkpoint; None if there was no such callback."""
    for name, state in (checkpoint.get("callbacks") or {}).items():
        if str(name).startswith("MixedPrecisionQuantization"):
            return state
    return None


def finetuned_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return policy and scales behind the weights in a Trainer checkpoint written during fine-tuning, or None."""
    if not isinstance(checkpoint, dict):
        return None
    finetuning = (callback_state(checkpoint) or {}).get("finetuning") or {}
    return finetuning.get("quantized") if finetuning.get("phase") == "training" else None


def load_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """Load a Trainer checkpoint of a quantized model into a float model of the same architecture, in place.

    A checkpoint that was written during fine-tuning gives the packed model that packing would have given then.

    Args:
        path: File written by ``Trainer.save_checkpoint`` or ModelCheckpoint after quantization.
        model: An instance of the LightningModule that was trained; on an error it is left as it was.

    Raises:
        CorruptModelError: If the file cannot be opened without running code from it, holds no packed model,
            or does not fit the model.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CorruptModelError(
            f"{path} cannot be opened as a checkpoint of plain tensors: {error}. Pass a file that the Trainer saved "
            "after quantization, or a folder written by lightning_mpq.save."
        ) from error
    policy, finetuned = policy_in_checkpoint(checkpoint), finetuned_state(checkpoint)
    if policy is None and finetuned is None:
        raise CorruptModelError(f"{path} holds a float model, or none; load it with load_from_checkpoint.")
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    floats = {} if policy is None else empty_packed_model(model, policy)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        if finetuned is not None:
            pack_finetuned(model, finetuned)
    except (RuntimeError, ValueError, TypeError) as error:
        restore_layers(model, floats)
        model.load_state_dict(before)
        raise CorruptModelError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model
