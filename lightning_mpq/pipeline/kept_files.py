"""Rounded weights in files of a folder: what cannot be read counts as absent, what has no room is not written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..curvature.cache.fingerprint import hash_content
from ..groups.candidates import Candidate
from ..inputs.quantizer import InputRange
from ..rounding.packed_rows import PackedRows
from ..rounding.rounded_weights import RoundedWeights
from ..schemes import InputScheme, LayerScheme, WeightScheme
from ..tools.files import write_bytes_atomically
from ..tools.reading import parse_json, require_ordinary
from ..tools.room import free_bytes, gigabytes
from ..tools.warning import warn

_SUFFIX = ".rounded.safetensors"


class KeptFiles:
    """A folder of rounded weights, a file for each name.

    On a processor codes are mapped from their file, and take no memory until they are read.
    """

    def __init__(self, folder: str | Path, device: str) -> None:
        """Write nothing yet.

        Args:
            folder: The folder, made when it is needed.
            device: Where codes and scales are wanted.
        """
        self._folder, self._device = Path(folder), device
        self._is_full = False

    def find(self, name: str) -> tuple[RoundedWeights, dict[str, Any]] | None:
        """Return what was kept under a name, and the notes on it; None if there is no such file, or a damaged one."""
        return _read(self._path(name), name, self._device)

    def keep(
        self, name: str, rounded: RoundedWeights, what: str, notes: Mapping[str, Any] | None = None
    ) -> RoundedWeights:
        """Keep rounded weights; return them from where they are kept now.

        A disk without room is told of once, and nothing is written from then on.

        Args:
            name: The name that they are found by.
            rounded: The weights.
            what: What they are, for that warning.
            notes: Plain values to be kept with them.
        """
        if self._is_full:
            return rounded
        free, size = free_bytes(self._folder), rounded.stored_bytes
        if free is not None and size > free:
            self._say_full(f"has {gigabytes(free)} free, and {what} takes {gigabytes(size)}")
            return rounded
        try:
            _write(self._path(name), rounded, {"name": name, "notes": dict(notes or {})})
        except OSError as error:
            self._say_full(f"cannot take {what}, {gigabytes(size)} ({error})")
            return rounded
        return (self.find(name) or (rounded, {}))[0]

    def _say_full(self, why: str) -> None:
        self._is_full = True
        warn(
            f"The cache {self._folder} {why}: this and what comes later stays in memory, and is lost with this "
            "process. Free some space, or pass another cache_dir."
        )

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_SUFFIX}"


def _write(path: Path, rounded: RoundedWeights, said: Mapping[str, Any]) -> None:
    """Write rounded weights; layers that share their codes do so in the file."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[int, int] = {}
    rows = []
    for (layer, scheme), packed in rounded.rows.items():
        number = numbers.setdefault(id(packed), len(numbers))
        rows.append([layer, asdict(scheme), rounded.errors.get((layer, scheme)), number, packed.shape])
        tensors |= {f"{number}.{name}": value.cpu().contiguous() for name, value in packed.tensors.items()}
    offered = [[candidate.group, candidate.scheme.to_dict(), candidate.stored_bits] for candidate in rounded.candidates]
    inputs = [[layer, asdict(scheme), asdict(found)] for (layer, scheme), found in rounded.inputs.items()]
    unseen = dict(rounded.unseen)
    text: dict[str, Any] = {"candidates": offered, "rows": rows, "inputs": inputs, "unseen": unseen, **said}
    text["hash"] = hash_content(text, tensors)
    write_bytes_atomically(path, to_bytes(tensors, metadata={"rounded": json.dumps(text)}))


def _read(path: Path, name: str, device: str) -> tuple[RoundedWeights, dict[str, Any]] | None:
    """Read rounded weights; a file that is damaged, or was written under another name, counts as absent."""
    try:
        require_ordinary(path)
        with safe_open(path, framework="pt") as file:
            text: dict[str, Any] = parse_json((file.metadata() or {})["rounded"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if text["hash"] != hash_content(text, tensors) or text["name"] != name:
            return None
        tensors = {name: value.to(device) for name, value in tensors.items()}
        known: dict[int, PackedRows] = {}
        rows, errors = {}, {}
        for layer, values, error, number, shape in text["rows"]:
            scheme = WeightScheme.from_dict(values)
            if number not in known:
                codes, scale = tensors[f"{number}.codes"], tensors[f"{number}.scale"]
                points = tensors.get(f"{number}.zero_point")
                known[number] = PackedRows(codes, (shape[0], shape[1]), scale, points, scheme)
            rows[layer, scheme] = known[number]
            if error is not None:
                errors[layer, scheme] = error
        offered = [Candidate(group, LayerScheme.from_dict(scheme), bits) for group, scheme, bits in text["candidates"]]
        inputs = {
            (layer, InputScheme.from_dict(scheme)): InputRange(**found) for layer, scheme, found in text["inputs"]
        }
        return RoundedWeights(tuple(offered), rows, errors, inputs, text["unseen"]), text["notes"]
    except Exception:  # which one, depends on the byte that is wrong
        return None
