"""Trainer checkpoints that were written after quantization: which policy they follow, and how to load them whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import CorruptModelError
from ...export.slots import fill_slots, find_slots
from ...finetune.resume import pack_finetuned
from ...modules import empty_packed_model, packed_layers
from ...policy import BitPolicy
from .all_or_nothing import as_it_was_after_errors, empty_layers, try_state

POLICY_KEY = "lightning_mpq.policy"
"""Where a checkpoint carries the policy of a module with `PackedCheckpoints`."""


def policy_in_checkpoint(checkpoint: Any) -> BitPolicy | None:
    """Return the policy of the packed layers in a Trainer checkpoint; None if its model is a float one.

    Raises:
        CorruptModelError: If it holds packed layers and no policy of ours.
    """
    if not isinstance(checkpoint, dict):
        return None
    if "state_dict" not in checkpoint and any(map(_holds_packed, (checkpoint, *checkpoint.values()))):
        raise CorruptModelError(
            "The file holds the state dict of a packed model alone, without the policy that says how to read it. Use "
            "lightning_mpq.save(model, folder) instead of torch.save; or quantize a float model by the same policy, "
            "and give it the state dict by load_state_dict."
        )
    if not _holds_packed(checkpoint.get("state_dict")):
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


def _holds_packed(state: Any) -> bool:
    return isinstance(state, dict) and any(str(key).endswith("packed_codes") for key in state)


def callback_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return what the callback wrote into a Trainer checkpoint; None if there was no such callback.

    Raises:
        CorruptModelError: If it is nothing that the callback writes.
    """
    for name, state in (checkpoint.get("callbacks") or {}).items():
        if str(name).startswith("MixedPrecisionQuantization"):
            if not isinstance(state, Mapping):
                raise CorruptModelError(f"The state of {name} in the checkpoint is damaged: a {type(state).__name__}.")
            return state
    return None


def finetuned_state(checkpoint: Any) -> Mapping[str, Any] | None:
    """Return policy and scales of the weights in a Trainer checkpoint written during fine-tuning, or None."""
    if not isinstance(checkpoint, dict):
        return None
    finetuning = (callback_state(checkpoint) or {}).get("finetuning") or {}
    if finetuning.get("phase") != "training":
        return None
    if not isinstance(finetuning["quantized"], Mapping):
        raise CorruptModelError("The checkpoint is damaged: the scales of what was fine-tuned cannot be read.")
    return finetuning["quantized"]


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


def read_packed(path: str | Path) -> tuple[dict[str, Any], BitPolicy | None, Mapping[str, Any] | None]:
    """Return a Trainer checkpoint of a packed model, with its policy, or with what was fine-tuned.

    Raises:
        CorruptModelError: If the file cannot be opened without running code from it, or holds no packed model.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # which one, depends on the byte that is wrong
        raise CorruptModelError(
            f"{path} cannot be opened as a checkpoint of plain tensors: {error}. Pass a file that the Trainer saved "
            "after quantization, or a folder written by lightning_mpq.save."
        ) from error
    policy, finetuned = _described(checkpoint, str(path))
    if policy is None and finetuned is None:
        raise CorruptModelError(
            f"{path} holds a float model, or none, and lightning_mpq.load gives packed ones. Use load_from_checkpoint "
            "or load_state_dict for a float model; pass a file that the Trainer saved after quantization, or a folder "
            "written by lightning_mpq.save, for a packed one."
        )
    return checkpoint, policy, finetuned


@torch.inference_mode(False)  # what is made here is to be trained, and changed in place
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
    checkpoint, policy, finetuned = read_packed(path)
    with empty_layers(model, policy), as_it_was_after_errors(model):
        try:
            if any(value.is_meta or value.is_inference() for value in (*model.parameters(), *model.buffers())):
                _fill(model, checkpoint["state_dict"])
            else:
                model.load_state_dict(checkpoint["state_dict"])
            if finetuned is not None:
                pack_finetuned(model, finetuned)
        except Exception as error:  # which one, depends on what is wrong in it
            raise CorruptModelError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model


@contextmanager
def made_ready(module: nn.Module, checkpoint: Any) -> Iterator[None]:
    """Make a module ready for a Trainer checkpoint that Lightning is about to load, so that all of it will fit.

    Layers are replaced by empty packed ones if the checkpoint holds such. After the block, in which the module's own
    hook may change the checkpoint, it is loaded on trial and taken back: what Lightning loads afterwards cannot fail.

    Raises:
        CorruptModelError: If the checkpoint is damaged or does not fit; the module is left as it was.
        ValueError: If the module is packed and the checkpoint holds a float model.
    """
    policy, finetuned = _described(checkpoint, "The checkpoint")
    name = type(module).__name__
    if policy is None and packed_layers(module) and isinstance(checkpoint, dict) and checkpoint.get("state_dict"):
        raise ValueError(
            f"{name} is packed, and the checkpoint holds its float weights from before; nothing was loaded. Give a new "
            f"instance for it, as in trainer.test({name}(...), ckpt_path=...), or leave ckpt_path out to go on with "
            "the packed model as it is."
        )
    with empty_layers(module, policy):
        yield
        if policy is not None or finetuned is not None:
            try_state(module, checkpoint["state_dict"], finetuned)


def _described(checkpoint: Any, what: str) -> tuple[BitPolicy | None, Mapping[str, Any] | None]:
    """Return policy and state of fine-tuning in a checkpoint, each None if it has none.

    Raises:
        CorruptModelError: If nobody can tell.
    """
    try:
        return policy_in_checkpoint(checkpoint), finetuned_state(checkpoint)
    except CorruptModelError:
        raise
    except Exception as error:  # which one, depends on what is wrong in it
        raise CorruptModelError(f"{what} cannot be read: {error}") from error


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
