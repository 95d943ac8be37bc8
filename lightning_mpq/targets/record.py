"""What is written beside a file to check it by later: its layers, its hash, inputs, and what they give."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import CorruptModelError
from ..export.example_inputs import ExampleInputs
from ..tools.files import write_bytes_atomically
from ..tools.reading import open_ordinary, parse_json, read_bytes
from .base import StoredLayer

ENDING = ".verify"
"""Of the record's name; no runtime takes it for weights."""
_NAME = "lightning_mpq" + ENDING
_FORMAT, _VERSION = "lightning_mpq.verify", 1
_MOST_BYTES = 2**31


@dataclass(frozen=True)
class Record:
    """How a file was when it was written, and what it computed.

    Attributes:
        target: Name of the target.
        layers: Packed layer to the name under which the file holds its weight; a shared weight is held once.
        schemes: Packed layer to the short name of its scheme.
        stored: Name in the file to what is there.
        promised_bytes: What the file was to take.
        files: Each file's path within the folder, or the name of the one file, to (bytes, SHA-256).
        batches: Inputs.
        outputs: What the packed model computed for each.
        unused: Packed layers that the model does not use on these inputs, and that the file does not hold.
    """

    target: str
    layers: Mapping[str, str]
    schemes: Mapping[str, str]
    stored: Mapping[str, StoredLayer]
    promised_bytes: int
    files: Mapping[str, tuple[int, str]]
    batches: Sequence[ExampleInputs]
    outputs: Sequence[Sequence[Tensor]]
    unused: Sequence[str] = ()

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())

    def write(self, path: Path) -> Path:
        """Write it where `read` looks for it, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        names = []
        for number, (batch, outputs) in enumerate(zip(self.batches, self.outputs, strict=True)):
            tensors |= {f"{number}.args.{place}": value for place, value in enumerate(batch.args)}
            tensors |= {f"{number}.kwargs.{name}": value for name, value in batch.kwargs.items()}
            tensors |= {f"{number}.outputs.{place}": value for place, value in enumerate(outputs)}
            names.append({"args": len(batch.args), "kwargs": list(batch.kwargs), "outputs": len(outputs)})
        plain = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
        own = {key: value for key, value in vars(self).items() if key not in ("batches", "outputs", "stored")}
        own["stored"] = {name: list(layer) for name, layer in self.stored.items()}
        body = json.dumps({"format": _FORMAT, "version": _VERSION, **own, "tensors": names})
        content = to_bytes(plain, metadata={"record": body})
        return write_bytes_atomically(record_path(path), content + sha256(content).digest())

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what `write` wrote beside a file.

        Raises:
            CorruptModelError: If there is none, or it is damaged.
        """
        place = record_path(path)
        try:
            everything = read_bytes(place, _MOST_BYTES)
        except FileNotFoundError as error:
            raise CorruptModelError(
                f"There is no {place.name} beside {path}: only what export_for() wrote can be verified."
            ) from error
        content, digest = everything[:-32], everything[-32:]
        try:
            if sha256(content).digest() != digest:
                raise CorruptModelError(f"{place} was altered after it was written: its hash differs. Export again.")
            tensors = from_bytes(content)
            header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")].decode())
            return cls._of(parse_json(header["__metadata__"]["record"]), tensors)
        except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
            if isinstance(error, CorruptModelError):
                raise
            raise CorruptModelError(f"{place} is no record of an export: {error!r}. Export again.") from error

    @classmethod
    def _of(cls, body: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Record:
        if body["format"] != _FORMAT or body["version"] != _VERSION:
            raise ValueError(f"expected {_FORMAT} of version {_VERSION}")
        batches, outputs = [], []
        for number, names in enumerate(body["tensors"]):
            args = tuple(tensors[f"{number}.args.{place}"] for place in range(names["args"]))
            kwargs = {name: tensors[f"{number}.kwargs.{name}"] for name in names["kwargs"]}
            batches.append(ExampleInputs(args, kwargs))
            outputs.append([tensors[f"{number}.outputs.{place}"] for place in range(names["outputs"])])
        own = {key: value for key, value in body.items() if key not in ("format", "version", "tensors")}
        own["stored"] = {name: StoredLayer(*values) for name, values in body["stored"].items()}
        own["files"] = {name: (size, digest) for name, (size, digest) in body["files"].items()}
        return cls(**own, batches=batches, outputs=outputs)


def record_path(path: Path) -> Path:
    """Return where the record of a file or folder is."""
    return path / _NAME if path.is_dir() else path.with_name(path.name + ENDING)


def files_at(path: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of a file, or of all in a folder but the record."""
    found = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    own = [p for p in found if p != record_path(path)]
    return {str(p.relative_to(path)) if path.is_dir() else p.name: _size_and_hash(p) for p in own}


def _size_and_hash(path: Path) -> tuple[int, str]:
    digest = sha256()
    with open_ordinary(path) as file:
        while part := file.read(2**20):
            digest.update(part)
    return path.stat().st_size, digest.hexdigest()
