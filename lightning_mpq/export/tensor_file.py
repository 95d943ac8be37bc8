"""The safetensors file of a saved model: written whole, read back only if every byte is the one that was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CorruptModelError
from ..tools.reading import open_ordinary, require_ordinary
from ..tools.temporaries import temporary_folder
from .manifest import MANIFEST_NAME, REMEDY, WEIGHTS_NAME, Manifest, TensorRecord

_MOST_HEADER_BYTES = 100_000_000  # what safetensors reads
_LEFTOVER = re.compile(rf"\.weights-.*\.tmp|\.{re.escape(MANIFEST_NAME)}\..{{8}}|\.tmp[0-9A-Za-z]{{6}}")
"""Temporary files of releases before `tools.temporaries`, and those of safetensors that they wrote by."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], records: Mapping[str, TensorRecord]) -> Path:
    """Write tensors to a file whose name its content decides, so that two writers never meet in one file.

    Args:
        folder: Where to write; it exists.
        tensors: Name to tensor: dense, contiguous, on the CPU, no two in one memory.
        records: Name to the record of each.

    Returns:
        The path of the file.
    """
    with temporary_folder(folder) as (scratch, permissions):
        written = scratch / "weights"
        save_file(dict(tensors), written)  # by a temporary file of its own, which is for its owner only
        written.chmod(permissions)
        with written.open("rb") as file:
            os.fsync(file.fileno())
        parts = [str(header_sha256(written)), *(record.sha256 for record in records.values())]
        content = sha256("".join(parts).encode()).hexdigest()
        path = written.replace(folder / f"weights-{content[:16]}.safetensors")
        _flush_folder(folder)  # the file must be found after a crash before anything may name it
        return path


def _flush_folder(folder: Path) -> None:
    """Write a folder's entries to disk, where the system can do that."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Read all tensors to memory and check them against the manifest.

    Size and hash of the header come first, so that an altered header never reaches a parser.

    Raises:
        CorruptModelError: If the file is not the one that was saved; the message names the tensor.
        OSError: If there is no such file, or it cannot be read.
    """
    try:
        size = require_ordinary(path).st_size
    except ValueError as error:
        raise CorruptModelError(f"{error} {REMEDY}") from error
    if size != manifest.weights_bytes:
        raise CorruptModelError(
            f"{path} has {size} bytes instead of {manifest.weights_bytes}: it is cut off or another file. {REMEDY}"
        )
    if size > 8 + _MOST_HEADER_BYTES + sum(record.nbytes for record in manifest.tensors.values()):
        raise CorruptModelError(f"{path} has {size} bytes, which are more than its tensors take. {REMEDY}")
    if header_sha256(path) != manifest.header_sha256:
        raise CorruptModelError(f"The header of {path} was altered after it was saved: its hash differs. {REMEDY}")
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if stray := set(file.keys()) ^ set(manifest.tensors):
                raise CorruptModelError(f"{path} and {MANIFEST_NAME} disagree on the tensor {min(stray)!r}. {REMEDY}")
            for name, record in manifest.tensors.items():
                tensors[name] = file.get_tensor(name).clone()  # a copy: what is checked is what will be used
                if TensorRecord.of(tensors[name]) != record:
                    raise CorruptModelError(f"The tensor {name!r} in {path} is damaged: its hash differs. {REMEDY}")
    except (SafetensorError, AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptModelError(f"{path} cannot be read: {error}. {REMEDY}") from error
    return tensors


def header_sha256(path: Path) -> str | None:
    """Return the hash of a safetensors file's header with its length, None if the file is too short for it."""
    with open_ordinary(path) as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > os.fstat(file.fileno()).st_size - 8:
            return None
        return sha256(prefix + file.read(length)).hexdigest()


def remove_leftovers(folder: Path, keep: str) -> None:
    """Remove tensor files that no manifest names any more, and what a process of an earlier release left behind.

    Args:
        folder: A folder whose lock is held.
        keep: Name of the tensor file that the manifest names.
    """
    for path in folder.iterdir():
        superseded = WEIGHTS_NAME.fullmatch(path.name) and path.name != keep
        if superseded or _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
