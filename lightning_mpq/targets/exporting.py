"""The verb `export_for`: a packed model written for a target, with the record that `verify` checks it by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

from torch import nn

from ..export.example_inputs import ExampleInputs, Examples
from ..export.float_twins import shared_key
from ..export.outputs import outputs_of
from ..modules import PackedLayer, packed_layers, policy_of, stored_bytes
from ..network.compiled import uncompiled
from ..tools.checks import check_positive
from ..tools.kinds import checked_kinds
from ..tools.temporaries import temporary_folder
from .base import StoredLayer, Target
from .menu import refuse_policy
from .record import Record, files_at, record_path
from .registry import target_named
from .verification import Verification
from .verification import verify as verify_file


@checked_kinds
def export_for(
    target: str | Target,
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Examples | ExampleInputs,
    *,
    verify: bool = True,
    most_bytes: float | None = None,
) -> Verification:
    """Write a packed model for a runtime, load it there, and compare widths, bytes and outputs.

    Beside the file, or within the folder, stands a record with the inputs and what the packed model computes, by which
    `verify` checks the file again anywhere, without the model.

    Args:
        target: The target, or its name.
        model: A packed model; it is left as it was.
        path: File or folder to write. It appears whole, after all checks, or not at all; a file is replaced, and so is
            a folder that was exported here; another one must not exist or be empty.
        example_inputs: What ``forward`` takes: one tensor, several, or a mapping from its arguments to tensors.
        verify: Whether the runtime is asked; without, only what was written is read back.
        most_bytes: What the file may take at most, such as ``budget.file_bytes``.

    Returns:
        What was found; as text, one line.

    Raises:
        CorruptModelError: If the runtime does not do what the packed model does; the layer is named where one is to
            blame.
        ImportError: If the runtime is not installed; the extra is named.
        TypeError: If the model does not take the inputs.
        ValueError: If nothing is packed, the policy does not fit the target (layers and the nearest schemes that would
            fit are named), or the file takes more than ``most_bytes`` or other bytes for a layer than were counted.
    """
    check_positive("most_bytes", most_bytes)
    target, path = target_named(target), Path(path)
    model, inputs = uncompiled(model), ExampleInputs.of(example_inputs)
    layers = packed_layers(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer to export; quantize it first.")
    refuse_policy(target, model, policy_of(model))
    if target.has_file:
        target.require_packages()
    refuse_folder(path)
    outputs = outputs_of(model, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(path.parent) as (scratch, _):
        written = scratch / path.name
        target.write(model, written, inputs)
        if path.exists() and path.is_dir() != written.is_dir():
            raise FileExistsError(
                f"The target {target.name!r} writes a {'folder' if written.is_dir() else 'file'}, and {path} is a "
                f"{'folder' if path.is_dir() else 'file'}; give another path."
            )
        stored = target.read(written)
        places = _places(layers, stored)
        _check_bytes(target, layers, places, stored)
        record = Record(
            target=target.name,
            layers=places,
            schemes={name: str(layer.scheme) for name, layer in layers.items()},
            stored={name: stored[name] for name in dict.fromkeys(places.values())},
            promised_bytes=promised_bytes(target, model),
            files=files_at(written),
            batches=[inputs],
            outputs=[outputs],
            unused=[name for name in layers if name not in places],
        )
        if most_bytes is not None and record.file_bytes > most_bytes:
            raise ValueError(
                f"The file takes {record.file_bytes:,} bytes, more than the {most_bytes:,.0f} that it may; nothing was "
                "written. Decide the policy by Budget(file_bytes=...), which counts all of the file."
            )
        record.write(written)
        found = Verification(
            path, target.name, len(places), tuple(record.unused), None, record.file_bytes, record.promised_bytes,
            "not asked for",
        )  # fmt: skip
        if verify:
            found = replace(verify_file(written, target=target, model=model), path=path)
        if not written.is_dir():
            record_path(written).replace(record_path(path))
        if path.is_dir():
            path.replace(scratch / "before")
        written.replace(path)
    return found


def refuse_folder(path: Path) -> None:
    """Refuse a folder that holds anything but what was exported to it before.

    Raises:
        FileExistsError: If it does.
    """
    if path.is_dir() and any(path.iterdir()) and not record_path(path).is_file():
        raise FileExistsError(f"{path} is not empty, and was not exported here; give a folder that does not exist yet.")


def promised_bytes(target: Target, model: nn.Module) -> int:
    """Return the bytes of a packed model as a budget counts them: codes, scales and zero points, and all in float."""
    by_key = {shared_key(layer): 0 for layer in packed_layers(model).values()}
    for layer in packed_layers(model).values():
        key = shared_key(layer)
        by_key[key] = max(by_key[key], target.stored_bits_with_inputs(layer, layer.layer_scheme))
    return ceil(sum(by_key.values()) / 8) + stored_bytes(model).floating


def _places(layers: Mapping[str, PackedLayer], stored: Mapping[str, StoredLayer]) -> dict[str, str]:
    """Return layer name to the name under which the file holds its weight."""
    first = {shared_key(layer): name for name, layer in reversed(list(layers.items())) if name in stored}
    places = {name: name if name in stored else first.get(shared_key(layer)) for name, layer in layers.items()}
    return {name: place for name, place in places.items() if place is not None}


def _check_bytes(
    target: Target,
    layers: Mapping[str, PackedLayer],
    places: Mapping[str, str],
    stored: Mapping[str, StoredLayer],
) -> None:
    """Refuse a file in which a layer does not take what was counted for it."""
    counted: dict[str, int] = {}
    for name, place in places.items():
        bits = target.stored_bits_with_inputs(layers[name], layers[name].layer_scheme)
        counted[place] = max(counted.get(place, 0), ceil(bits / 8))
    for name, place in places.items():
        if stored[place].bytes != counted[place]:
            raise ValueError(
                f"The layer {name!r} ({layers[name].scheme}) takes {stored[place].bytes:,} bytes in the file of the "
                f"target {target.name!r}, which counted {counted[place]:,} for it: its stored_bits() and write() "
                "disagree. Nothing was written."
            )
