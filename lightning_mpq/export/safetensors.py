"""Save a packed model as safetensors plus JSON, and load it into a float model of the same architecture.

A saved model is a folder with two files: ``lightning_mpq.json`` (the policy, and shape, type and hash of every
tensor) and the tensor file that it names. The name of the tensor file is derived from its content, and the JSON is
put in place last, in one step: whoever looks finds the old model or the new one, also if two processes save to
one folder or a process dies midway. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CorruptModelError
from ..modules import PackedLayer, packed_layers, policy_of
from ..modules.quantized_operands import operands_in_float, quantize_operands
from ..modules.replacing import replace_layers
from ..modules.twins import build_layers, empty_layer
from ..network.compiled import uncompiled
from ..network.named_weights import named_layers
from ..tools.clean_up import afterwards
from ..tools.files import write_text_atomically
from ..tools.kinds import checked_kinds
from ..tools.locks import locked
from .manifest import (
    MANIFEST_NAME,
    REMEDY,
    Manifest,
    TensorRecord,
    dtype_name,
    read_manifest,
)
from .slots import Slot, fill_slots, find_slots
from .tensor_file import (
    header_sha256,
    read_tensors,
    remove_leftovers,
    write_tensors,
)

Model = TypeVar("Model", bound=nn.Module)
LOCK_NAME = ".lightning_mpq.lock"


@checked_kinds
def save(model: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Write a packed model to a folder: every parameter and persistent buffer, packed or not, and the policy.

    The folder is created if need be. A model saved there before is replaced in one step, or kept if anything
    fails.

    Args:
        model: A model with packed layers, on any device.
        folder: Where to write.

    Returns:
        The folder.

    Raises:
        TimeoutError: If another process holds the folder's lock and does not give it back.
        ValueError: If no layer is packed, or the model holds something that cannot be saved.
    """
    model = uncompiled(model)  # whose names fit, whether what loads them is compiled or not
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to save; quantize it first.")
    slots = find_slots(model)
    tensors = {slot.name: slot.portable() for slot in slots}
    records = {name: TensorRecord.of(tensor) for name, tensor in tensors.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK_NAME) as alone:
        weights = write_tensors(folder, tensors, records)
        manifest = Manifest(
            model_class=f"{type(model).__module__}.{type(model).__qualname__}",
            policy=policy_of(model),
            compute_dtypes={name: dtype_name(layer.weight_dtype) for name, layer in layers.items()},
            weight_shapes={name: tuple(layer.weight_shape) for name, layer in layers.items()},
            weights_file=weights.name,
            weights_bytes=weights.stat().st_size,
            header_sha256=str(header_sha256(weights)),
            tensors=records,
            aliases={alias: slot.name for slot in slots for alias in slot.places if alias != slot.name},
        )
        write_text_atomically(folder / MANIFEST_NAME, manifest.to_json())
        if alone:
            remove_leftovers(folder, keep=weights.name)
    return folder


@torch.inference_mode(False)  # what is made here is to be trained, and changed in place
def load_folder(folder: str | os.PathLike[str], model: Model) -> Model:
    """Turn a float model into the packed one that was saved, in place and without rounding anything.

    Names, shapes, types and hashes of all tensors are checked before the model is touched. It may be on the
    meta device, and what is loaded is then on the CPU. What is not packed keeps its identity, modules their mode.

    Args:
        folder: What `save` wrote.
        model: A float model of the architecture that was quantized, in the type that it was saved in.

    Returns:
        The same model.

    Raises:
        CorruptModelError: If a file is missing, damaged or foreign, or the model is of another architecture.
    """
    folder = Path(folder)
    try:
        layers, slots, put_operands_in, source, tensors = _read(folder, model)
    except CorruptModelError as error:
        # Another process may just be saving, or have saved between two steps of ours: look again while nobody can.
        try:
            with _nobody_writing(folder):
                layers, slots, put_operands_in, source, tensors = _read(folder, model)
        except TimeoutError as waited:
            raise CorruptModelError(f"{error} It may be about to be saved: {waited}") from error
    uses = Counter(source.values())  # what was one tensor may be two in this model, each in memory of its own
    found = ((slot, tensors[source[slot.name]], uses[source[slot.name]] > 1) for slot in slots)
    fill_slots((slot, value.clone() if shared else value) for slot, value, shared in found)
    replace_layers(model, layers)
    put_operands_in()
    return model


def _read(
    folder: Path, model: nn.Module
) -> tuple[dict[str, PackedLayer], list[Slot], Callable[[], None], dict[str, str], dict[str, Tensor]]:
    """Read and check everything that was saved: empty packed layers, their slots, what fills each, and the tensors.

    A function among them lets sums and averages read quantized tensors, whose ranges are among the slots.

    Raises:
        CorruptModelError: If a file is missing, damaged or foreign, or does not fit the model.
    """
    manifest = read_manifest(folder)
    layers, slots, put_operands_in = _packed_view(model, manifest)
    source = _match(slots, manifest, model)
    path = folder / manifest.weights_file
    try:
        return layers, slots, put_operands_in, source, read_tensors(path, manifest)
    except FileNotFoundError as error:
        raise CorruptModelError(f"{path} is missing, though {MANIFEST_NAME} names it. {REMEDY}") from error
    except OSError as error:
        raise CorruptModelError(f"{path} cannot be read: {error}. {REMEDY}") from error


def _packed_view(model: nn.Module, manifest: Manifest) -> tuple[dict[str, PackedLayer], list[Slot], Callable[[], None]]:
    """Build empty packed layers for a float model and find the slots it will have; the model is left as it was.

    Raises:
        CorruptModelError: If the saved policy does not fit the model.
    """
    own_name = type(model).__name__
    try:
        layers = build_layers(model, manifest.policy, empty_layer)
    except (TypeError, ValueError) as error:
        raise CorruptModelError(
            f"The model saved from {manifest.model_class} does not fit {own_name}: {error}"
        ) from error
    for name, layer in layers.items():
        saved, own = manifest.compute_dtypes.get(name), dtype_name(layer.weight_dtype)
        if saved != own:
            raise CorruptModelError(
                f"The layer {name!r} was saved to compute in {saved}, but that of {own_name} is {own}. "
                f"Convert the model before loading, e.g. with model.to(torch.{saved})."
            )
        shape, own_shape = manifest.weight_shapes.get(name, ()), tuple(layer.weight_shape)
        if shape != own_shape:
            raise CorruptModelError(
                f"The weight of layer {name!r} was saved with the shape {list(shape)}, but that of {own_name} "
                f"has {list(own_shape)}. Give {own_name} the architecture that was saved."
            )
    now = named_layers(model, remove_duplicate=False)
    with afterwards(lambda: replace_layers(model, {name: now[name] for name in layers})):
        replace_layers(model, layers)
        try:
            quantize_operands(model, manifest.policy.operands or {}, None)
        except ValueError as error:
            raise CorruptModelError(
                f"The model saved from {manifest.model_class} does not fit {own_name}: {error}"
            ) from error
        slots = find_slots(model)
        put_operands_in = operands_in_float(model)
    stored = {name for slot in slots for name in slot.places}
    if lost := [name for name, value in model.named_buffers() if value.is_meta and name not in stored]:
        raise CorruptModelError(
            f"{own_name} holds the buffer {lost[0]!r} on the meta device, and it is not part of a saved model "
            "(persistent=False). Build the model on a real device."
        )
    return layers, slots, put_operands_in


def _match(slots: list[Slot], manifest: Manifest, model: nn.Module) -> dict[str, str]:
    """Return the saved tensor for each slot, by their names, after checking names, shapes, types and ties.

    Raises:
        CorruptModelError: If a tensor is missing, left over or different; the message names it.
    """
    own_name = type(model).__name__
    origin = f"the model saved from {manifest.model_class}"
    advice = f"Give {own_name} the architecture and the types that were saved."
    saved = {**{name: name for name in manifest.tensors}, **manifest.aliases}
    wanted = {name: slot for slot in slots for name in slot.places}
    if missing := [name for name in wanted if name not in saved]:
        raise CorruptModelError(f"{own_name} needs the tensor {missing[0]!r}, which {origin} does not hold. {advice}")
    if extra := [name for name in saved if name not in wanted]:
        raise CorruptModelError(f"{own_name} does not have the tensor {extra[0]!r}, which {origin} holds. {advice}")
    for name, slot in wanted.items():
        record = manifest.tensors[saved[name]]
        own_type, own_shape = dtype_name(slot.value.dtype), tuple(slot.value.shape)
        if (record.dtype, record.shape) != (own_type, own_shape):
            raise CorruptModelError(
                f"{own_name} needs the tensor {name!r} as {own_type} {list(own_shape)}, but {origin} holds it as "
                f"{record.dtype} {list(record.shape)}. {advice}"
            )
        if record != manifest.tensors[saved[slot.name]]:
            raise CorruptModelError(
                f"{own_name} has one tensor under the names {slot.name!r} and {name!r}, but {origin} holds two "
                f"different ones. {advice}"
            )
    return {slot.name: saved[slot.name] for slot in slots}


def _nobody_writing(folder: Path) -> AbstractContextManager[object]:
    """Hold the lock of a folder that was saved to; nothing is made in any other folder."""
    return locked(folder / LOCK_NAME) if (folder / LOCK_NAME).exists() else nullcontext()
