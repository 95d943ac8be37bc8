"""Trained weights on disk, under a hash of everything that decides them, so that a sweep trains once."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from typing_extensions import override

from ..curvature.cache.fingerprint import hash_tensor
from ..tools.files import write_bytes_atomically
from ..tools.reading import open_ordinary

log = logging.getLogger(__name__)
LIBRARIES = ("torch", "lightning", "torchmetrics")


@dataclass(frozen=True)
class TrainedWeights:
    """One entry of the cache.

    Attributes:
        folder: Folder of the cache.
        key: What `training_key` returned.
    """

    folder: Path
    key: str

    @property
    def path(self) -> Path:
        """File of the entry."""
        return self.folder / f"{self.key}.safetensors"

    def load(self) -> dict[str, Tensor] | None:
        """Return the weights; None, with a warning unless there is no file, if they are not as they were stored."""
        try:
            if not self.path.exists():
                return None
            with open_ordinary(self.path) as file, safe_open(self.path, framework="pt") as mapped:
                metadata = mapped.metadata()  # its size fits its header, or this fails
                content = file.read()  # not mapped: the file may change under a mapping
            state = load(content)
        except (SafetensorError, MemoryError, OSError, RuntimeError, ValueError) as error:
            log.warning("%s cannot be read (%s); training again.", self.path, error)
            return None
        if metadata != self._metadata(state):
            log.warning("%s does not hold what was stored under its name; training again.", self.path)
            return None
        return state

    def store(self, state: Mapping[str, Tensor]) -> None:
        """Write the weights, whole or not at all."""
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
        write_bytes_atomically(self.path, save(plain, self._metadata(plain)))

    def _metadata(self, state: Mapping[str, Tensor]) -> dict[str, str]:
        return {"trained": f"{self.key} {_checksum(state)}"}


class KeepTrained(Callback):
    """Takes a copy of the weights at the end of training; list it before whatever changes them there.

    Attributes:
        state: The weights; None before.
    """

    def __init__(self, entry: TrainedWeights | None) -> None:
        self.entry = entry
        self.state: dict[str, Tensor] | None = None

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the weights and store them; where that is impossible, the next run trains again."""
        self.state = {name: value.detach().cpu().clone() for name, value in pl_module.state_dict().items()}
        if self.entry is not None:
            try:
                self.entry.store(self.state)
            except OSError as error:
                log.warning("The trained weights cannot be kept in %s: %s", self.entry.path, error)


def training_key(config: Mapping[str, Any], module: nn.Module, datamodule: L.LightningDataModule) -> str | None:
    """Return a hash of everything that decides the trained weights.

    That is: the configuration, the weights before training, the data, the versions of the libraries, and the
    code, which is every Python file beside one that defines a class of the module, its layers or the datamodule.
    Code in other folders that these call as plain functions is not seen.

    Args:
        config: Plain values that decide the training: seed, model, data, trainer, callbacks.
        module: The module before training.
        datamodule: The data; its ``fingerprint()`` returns a hash of its content.

    Returns:
        None if the content cannot be known: the datamodule has no ``fingerprint()``, or code has no file.
    """
    fingerprint = getattr(datamodule, "fingerprint", None)
    files = source_files([type(layer) for layer in module.modules()] + [type(datamodule)])
    if fingerprint is None or files is None:
        return None
    content = {
        "config": config,
        "data": fingerprint(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "code": sorted([path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files),
        "weights": _checksum(module.state_dict()),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def source_files(classes: Iterable[type]) -> set[Path] | None:
    """Return the Python files in the folders of all classes and their bases, libraries left out.

    Returns:
        None if a class is defined in no file.
    """
    left_out = {*sys.stdlib_module_names, *LIBRARIES}
    folders: set[Path] = set()
    for base in {base for found in classes for base in found.__mro__}:
        if base.__module__.partition(".")[0] in left_out - {"__main__"}:
            continue
        try:
            folders.add(Path(inspect.getfile(base)).resolve().parent)
        except (TypeError, OSError):
            return None
    return {path for folder in folders for path in folder.glob("*.py")}


def _checksum(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + hash_tensor(state[name]))
    return digest.hexdigest()
