"""Files for runtimes that the command writes of a packed model: ``export=target``, ``export=[onnxruntime,vllm]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import ListConfig

from ..export import export_compressed_tensors
from ..export.example_inputs import ExampleInputs
from ..export.extras import require
from ..targets import Target, export_for, target_named
from ..targets.exporting import refuse_folder
from ..targets.registry import TARGETS
from ..trainer.calibration_data import batches_outside_of_fit

PLAIN = "compressed_tensors"
"""A format that is written without a runtime that could check it, tables and zero points included."""
_ALIASES = {"onnx": "onnxruntime"}
_WRITTEN_ANYWAY = ("safetensors", "torch")


def requested(value: Any, target: Target, folder: Path) -> tuple[Target | str, ...]:
    """Return the exports that ``export=`` names, after a look at whether they can be written.

    Args:
        value: None, the name of a target, ``"target"`` for the one that the policy is for if that has a file, or
            several of these.
        target: That one.
        folder: Where they will be written.

    Returns:
        Targets, and `PLAIN`; the folder ``model/``, which is always written, is left out.

    Raises:
        FileExistsError: If something else is where one is to be written.
        ImportError: If one needs a package that is not installed.
        TypeError: If a target that is named has no file.
        ValueError: If one is not known.
    """
    several = isinstance(value, (list, tuple, ListConfig))
    names = [str(name) for name in value] if several else [] if value is None else [str(value)]
    wanted: dict[str, Target | str] = {}
    for name in (_ALIASES.get(name, name) for name in names):
        if name == target.name or (name == "target" and target.has_file):
            wanted[target.name] = target
        elif name == PLAIN:
            require("compressed-tensors", PLAIN, "export=compressed_tensors")
            wanted[name] = name
        elif name in TARGETS:
            wanted[name] = target_named(name)
        elif name not in ("target", *_WRITTEN_ANYWAY):
            known = ", ".join(["target", *TARGETS, *_ALIASES, PLAIN])
            raise ValueError(f"export={name} is not known. Use {known}; safetensors are always written.")
    for name in _WRITTEN_ANYWAY:
        wanted.pop(name, None)
    for own in wanted.values():
        refuse_folder(path_of(own, folder))
        if isinstance(own, Target):
            own.require_packages()
            if not own.has_file:
                raise TypeError(f"export={own.name}: that target has no file, as it does not define write().")
    return tuple(wanted.values())


def path_of(export: Target | str, folder: Path) -> Path:
    """Return where an export is written."""
    if isinstance(export, str):
        return folder / export
    return folder / (f"model{export.ending}" if export.ending else export.name)


def export(
    own: Target | str,
    module: L.LightningModule,
    trainer: L.Trainer,
    datamodule: L.LightningDataModule | None,
    folder: Path,
    most_bytes: float | None,
) -> str:
    """Write a packed model for a runtime, let it be verified there, and return where it is and what was found.

    Args:
        own: One of what `requested` returned.
        module: The packed model.
        trainer: Draws the batch that the runtime's outputs are compared on.
        datamodule: The data; None for the module's own loaders.
        folder: Where to.
        most_bytes: What the file may take at most.
    """
    path = path_of(own, folder)
    if isinstance(own, str):
        return str(export_compressed_tensors(module, path))
    (batch, *_) = batches_outside_of_fit(trainer, module, datamodule, 1, 0)
    inputs = ExampleInputs.of_batch(module.cpu(), batch)
    return f"{path}: {export_for(own, module, path, inputs, most_bytes=most_bytes)}"
