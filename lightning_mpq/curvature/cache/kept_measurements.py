"""Measurements of single batches in a folder, so that a later profile with more widths measures only what is new."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ...groups.candidates import Candidate
from ...groups.groups import LayerGroup
from ...rounding.rounded_weights import RoundedWeights
from ...tools.files import write_bytes_atomically
from ...tools.reading import parse_json, require_ordinary
from ...tools.warning import warn
from ..estimators.measurement import Measurement
from .fingerprint import hash_content, hash_tensor

MOST_BYTES = 2**28
"""Measurements beyond this many bytes are not kept; the profile that needs them measures them again."""
_SUFFIX = ".batches.safetensors"
_PARTS = ("rows", "matrix", "gradient")


def candidate_hashes(
    groups: Sequence[LayerGroup], candidates: Sequence[Candidate], rounded: RoundedWeights | None
) -> list[str]:
    """Return for each candidate a hash of its group, its scheme and, if rounded on data, its rounded weights."""
    layers = {group.name: group.layers for group in groups}
    found = []
    for candidate in candidates:
        digest = hashlib.sha256(f"{candidate.group} {candidate.scheme!r}".encode())
        for layer in layers[candidate.group] if rounded is not None else ():
            assert rounded is not None
            rows = rounded.of_layer(layer, candidate.scheme.weight)
            for tensor in (rows.codes, rows.scale, rows.zero_point):
                if tensor is not None:
                    digest.update(hash_tensor(tensor))
            if (inputs := candidate.scheme.quantized_input) is not None:
                digest.update(repr(rounded.inputs.get((layer, inputs))).encode())
                digest.update(repr(rounded.operand_ranges(layer)).encode())
        found.append(digest.hexdigest())
    return found


class KeptMeasurements:
    """Measurements by the hash of their batch, up to `MOST_BYTES` in memory and in one file.

    Rows take 4 bytes for each sample, draw (or output) and candidate where the model is in single precision: 13 MB for
    4,096 samples and 784 candidates by `fisher`.
    """

    def __init__(self, folder: str | Path, settings_hash: str, candidates: Sequence[str]) -> None:
        """Read what earlier profiles with the same settings kept about these candidates, whole or in part.

        Args:
            folder: Where the files are.
            settings_hash: Hash of everything but data and candidates.
            candidates: `candidate_hashes` of all candidates.
        """
        self._folder = Path(folder)
        self._settings = settings_hash
        self._candidates = list(candidates)
        self._known: dict[str, tuple[tuple[int, ...], list[Measurement]]] = {}
        self._bytes = 0
        self._files: dict[Path, tuple[set[str], set[str]]] = {}
        for path in sorted(self._folder.glob(f"{settings_hash[:32]}-*{_SUFFIX}")):
            self._read(path)

    def get(self, digest: str, number: int) -> tuple[Measurement | None, Sequence[int]]:
        """Return what is known of chunk ``number`` of a batch, and of which candidates; None of nothing."""
        columns, parts = self._known.get(digest, ((), []))
        return (parts[number], columns) if number < len(parts) else (None, ())

    def add(self, digest: str, parts: Sequence[Measurement]) -> None:
        """Keep the measurement of all candidates on a batch, if there is room."""
        room = self._bytes - self._size(digest) + sum(part.nbytes for part in parts)
        if room <= MOST_BYTES:
            self._bytes = room
            self._known[digest] = (tuple(range(len(self._candidates))), [part.to("cpu") for part in parts])

    def store(self) -> None:
        """Write what is known of all candidates to one file, which takes the place of files that it contains."""
        everything = tuple(range(len(self._candidates)))
        whole = {digest: parts for digest, (columns, parts) in self._known.items() if columns == everything}
        if not whole:
            return
        tensors: dict[str, Tensor] = {}
        for number, parts in enumerate(whole.values()):
            for chunk, part in enumerate(parts):
                values = {name: getattr(part, name) for name in _PARTS}
                tensors |= {f"{number}.{chunk}.{n}": v.cpu().contiguous() for n, v in values.items() if v is not None}
        text: dict[str, Any] = {
            "settings": self._settings,
            "candidates": self._candidates,
            "batches": [[digest, [part.samples for part in parts]] for digest, parts in whole.items()],
        }
        text["hash"] = hash_content(text, tensors)
        name = hashlib.sha256(" ".join([*self._candidates, *sorted(whole)]).encode()).hexdigest()[:32]
        path = self._folder / f"{self._settings[:32]}-{name}{_SUFFIX}"
        if path in self._files:
            return
        write_bytes_atomically(path, to_bytes(tensors, metadata={"measurements": json.dumps(text)}))
        for other, (theirs, digests) in list(self._files.items()):
            if other != path and theirs <= set(self._candidates) and digests <= set(whole):
                other.unlink(missing_ok=True)
                del self._files[other]
        self._files[path] = (set(self._candidates), set(whole))

    def _read(self, path: Path) -> None:
        """Take over what a file holds about the candidates; one that cannot be read counts as absent."""
        try:
            require_ordinary(path)
            with safe_open(path, framework="pt") as file:
                text = parse_json((file.metadata() or {})["measurements"])
                theirs: list[str] = text["candidates"]
                columns = tuple(i for i, key in enumerate(self._candidates) if key in set(theirs))
                if text["settings"] != self._settings or not columns:
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            if text.get("hash") != hash_content(text, tensors):
                raise ValueError("its numbers are not those that were written")
            self._take(text, tensors, columns)
            self._files[path] = (set(theirs), {digest for digest, _ in text["batches"]})
        except OSError:
            return
        except Exception as error:  # which one, depends on the byte that is wrong
            warn(f"The cache entry {path} is damaged, and what it holds is measured again: {error}.")

    def _take(self, text: dict[str, Any], tensors: dict[str, Tensor], columns: tuple[int, ...]) -> None:
        """Take over the measurements of batches of which less is known."""
        places = [text["candidates"].index(self._candidates[i]) for i in columns]
        for number, (digest, samples) in enumerate(text["batches"]):
            if len(self._known.get(digest, ((), []))[0]) >= len(columns):
                continue
            parts = []
            for chunk, size in enumerate(samples):
                values = {part: tensors.get(f"{number}.{chunk}.{part}") for part in _PARTS}
                parts.append(Measurement(size, **values).of(places))
            room = self._bytes - self._size(digest) + sum(part.nbytes for part in parts)
            if room <= MOST_BYTES:
                self._bytes = room
                self._known[digest] = (columns, parts)

    def _size(self, digest: str) -> int:
        return sum(part.nbytes for part in self._known.get(digest, ((), []))[1])
