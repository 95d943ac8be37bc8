"""Trainer checkpoints that were written after quantization: which policy they follow, and how to load them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import CorruptModelError
from ...export.slots import fill_slots, find_slots
from ...finetune.resume import pack_finetuned
from ...modules import empty_packed_model, packed_layers, restore_layers
from ...policy import BitPolicy

POLICY_KEY = "lightning_mpq.policy"
"""Where a checkpoint carries the policy of a module with `PackedCheckpoints`."""


def policy_in_checkpoint(checkpoint: Any) -> BitPolicy | None:
    """Return the policy of the packed layers in a Trainer checkpoint; None if its model is a float one.

    Raises:
        CorruptModelError: If it holds packed layers and no policy of ours.
    """
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        return None
    if not any(key.endswith("packed_codes") for key in checkpoint["state_dict"]):
        return None
    state = callback_state(checkpoint)
    if POLICY_KEY in checkpoint:
        return BitPolicy.from_json(checkpoint[POLICY_KEY])
    if state is not None and "policy" in state:
        return BitPolicy.from_json(state["policy"])
    raise CorruptModelError(
        "The checkpoint holds packed layers, but no policy of MixedPrecisionQuantization, which says how to read "
        "them. Save with the callback in Trainer(callbacks=...) and without save_weights_only, give the module the "
        "mixin lightning_mpq.PackedCheckpoints, or use lightning_mpq.save."
    )


def callback_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return what the callback wrote into a Trainer checkpoint; None if there was no such callback."""
    for name, state in (checkpoint.get("callbacks") or {}).items():
        if str(name).startswith("MixedPrecisionQuantization"):
            return state
    return None


def finetuned_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return policy and scales of the weights in a Trainer checkpoint written during fine-tuning, or None."""
    if not isinstance(checkpoint, dict):
        return None
    finetuning = (callback_state(checkpoint) or {}).get("finetuning") or {}
    return finetuning.get("quantized") if finetuning.get("phase") == "training" else None


def make_ready(model: nn.Module, checkpoint: Any) -> None:
    """Replace layers of a float model by empty packed ones if the Trainer checkpoint to load holds such.

    Raises:
        CorruptModelError: If it holds packed layers and no policy of ours.
        TypeError: If a layer cannot be packed.
        ValueError: If its policy does not fit the model.
    """
    policy = policy_in_checkpoint(checkpoint)
    if policy is not None and not packed_layers(model):
        empty_packed_model(model, policy)


def load_checkpoint(path: str | Path, model: nn.Module) -> nn.Module:
    """Load a Trainer checkpoint of a quantized model into a float model of the same architecture, in place.

    A checkpoint that was written during fine-tuning gives the packed model that packing would have given then.

    Args:
        path: File written by ``Trainer.save_checkpoint`` or ModelCheckpoint after quantization.
        model: An instance of the LightningModule that was trained; on an error it is left as it was. It may be on the
            meta device, and what is loaded is then on the CPU.

    Returns:
        The same model, packed.

    Raises:
        CorruptModelError: If the file cannot be opened without running code from it, holds no packed model,
            or does not fit the model.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # which one, depends on the byte that is wrong
        raise CorruptModelError(
            f"{path} cannot be opened as a checkpoint of plain tensors: {error}. Pass a file that the Trainer saved "
            "after quantization, or a folder written by lightning_mpq.save."
        ) from error
    try:
        policy, finetuned = policy_in_checkpoint(checkpoint), finetuned_state(checkpoint)
    except (AttributeError, TypeError, ValueError) as error:
        raise CorruptModelError(f"{path} cannot be read: {error}") from error
    if policy is None and finetuned is None:
        raise CorruptModelError(f"{path} holds a float model, or none; load it with load_from_checkpoint.")
    floats: dict[str, nn.Module] = {}
    before: dict[str, torch.Tensor] = {}
    try:
        floats = {} if policy is None else empty_packed_model(model, policy)
        # Layers that were replaced keep their float weights, so that only the rest is copied to go back to.
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        if any(value.is_meta for value in before.values()):
            _fill(model, checkpoint["state_dict"])
        else:
            model.load_state_dict(checkpoint["state_dict"])
        if finetuned is not None:
            pack_finetuned(model, finetuned)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if before and not any(value.is_meta for value in before.values()):
            model.load_state_dict(before)
        restore_layers(model, floats)
        raise CorruptModelError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give a model on the meta device the tensors of a state dict; ties of the model hold.

    Raises:
        ValueError: If names, shapes or types differ; nothing has been changed then.
    """
    slots = find_slots(model)
    wanted = {name: slot.value for slot in slots for name in slot.places}
    if other := sorted(set(wanted) ^ set(state)):
        raise ValueError(f"the tensor {other[0]!r} is {'missing' if other[0] in wanted else 'unexpected'}.")
    for name, own in wanted.items():
        if (own.shape, own.dtype) != (state[name].shape, state[name].dtype):
            raise ValueError(
                f"the tensor {name!r} must be {own.dtype} {list(own.shape)}, got {state[name].dtype} "
                f"{list(state[name].shape)}."
            )
    metadata = getattr(state, "_metadata", {})
    for name, layer in packed_layers(model).items():
        if error := layer.shape_error(f"{name}.", metadata.get(name, {})):
            raise ValueError(error)
    fill_slots((slot, state[slot.name]) for slot in slots)
