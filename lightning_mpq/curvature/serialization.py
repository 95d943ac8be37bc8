"""A Taylor model as one safetensors file: tensors, and a JSON text in the header for everything else. Never pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from ..errors import CorruptModelError
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..schemes import LayerScheme, WeightScheme
from ..tools.checks import shown
from ..tools.files import write_bytes_atomically
from ..tools.reading import parse_json, require_ordinary
from .cache.fingerprint import hash_content

FORMAT = "lightning_mpq.taylor"
VERSION = 4
"""4: with a hash of the content. 3: with schemes of layers. 2: with schemes of weights. 1: without sums over blocks of
the data, so that prediction errors are entry by entry."""
_READABLE = (1, 2, 3, 4)
_TENSORS = ("gradient", "curvature", "gradient_error", "curvature_error")
_PLAIN: dict[str, type | tuple[type, ...]] = {
    "estimator": str,
    "loss": str,
    "samples": int,
    "float_bytes": int,
    "fingerprint": str,
    "settings_hash": str,
    "batch_hashes": (list, tuple),
}


def save_fields(fields: Mapping[str, Any], path: Path) -> Path:
    """Write the fields of a Taylor model to ``path``, whole or not at all."""
    tensors = {name: value.contiguous() for name in _TENSORS if (value := fields[name]) is not None}
    tensors |= {f"sums.{name}": value.contiguous() for name, value in (fields["sums"] or {}).items()}
    text = {
        "format": FORMAT,
        "version": VERSION,
        "groups": [asdict(group) for group in fields["groups"]],
        "candidates": [asdict(candidate) for candidate in fields["candidates"]],
        **{name: fields[name] for name in _PLAIN},
    }
    text["hash"] = hash_content(json.loads(json.dumps(text)), tensors)
    return write_bytes_atomically(path, to_bytes(tensors, metadata={"taylor": json.dumps(text)}))


def load_fields(path: Path) -> dict[str, Any]:
    """Read the fields of a Taylor model, by name, from a file that `save_fields` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        CorruptModelError: If it is truncated, damaged, of another version or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no Taylor model at {path}.")
    try:
        require_ordinary(path)
        with safe_open(path, framework="pt") as file:
            text = parse_json((file.metadata() or {}).get("taylor", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, MemoryError, OSError, RuntimeError, ValueError) as error:
        raise CorruptModelError(
            f"{path} is truncated or damaged, or no safetensors file: {error}. Fetch it again, or profile again."
        ) from error
    if not isinstance(text, dict) or text.get("format") != FORMAT:
        raise CorruptModelError(f"{path} is a safetensors file, but no Taylor model. Give one that `save` wrote.")
    if text.get("version") not in _READABLE:
        raise CorruptModelError(
            f"{path} is a Taylor model of version {shown(text.get('version'))}; expected "
            f"{' or '.join(map(str, _READABLE))}. Profile again, or read it with the release that wrote it."
        )
    if text["version"] >= 4 and text.get("hash") != hash_content(text, tensors):
        raise CorruptModelError(
            f"{path} is damaged: its numbers are not those that were written. Fetch it again, or profile again."
        )
    try:
        if wrong := next((name for name, kind in _PLAIN.items() if not isinstance(text[name], kind)), None):
            raise ValueError(f"{wrong} is {shown(text[wrong])}")
        sums = {name.removeprefix("sums."): value for name, value in tensors.items() if name.startswith("sums.")}
        return {
            "groups": tuple(_group(group) for group in text["groups"]),
            "candidates": tuple(_candidate(candidate) for candidate in text["candidates"]),
            **{name: tensors.get(name) for name in _TENSORS},
            **{name: text[name] for name in _PLAIN if name != "batch_hashes"},
            "batch_hashes": tuple(map(_text, text["batch_hashes"])),
            "sums": sums or None,
        }
    except Exception as error:  # which one, depends on the byte that is wrong
        raise malformed(path, error) from error


def malformed(path: Path, error: Exception) -> CorruptModelError:
    """Return the error for a file whose fields make no Taylor model."""
    return CorruptModelError(f"{path} holds a malformed Taylor model: {type(error).__name__}: {error}. Profile again.")


def _group(values: dict[str, Any]) -> LayerGroup:
    shapes = tuple((int(rows), int(columns)) for rows, columns in values["shapes"])
    name, layers = _text(values["name"]), tuple(map(_text, values["layers"]))
    return LayerGroup(name, layers, shapes, tuple(values["bits"]), values.get("block"), tuple(values.get("inputs", ())))


def _candidate(values: dict[str, Any]) -> Candidate:
    given = values["scheme"]
    scheme = LayerScheme.from_dict(given) if "weight" in given else LayerScheme(WeightScheme.from_dict(given))
    return Candidate(_text(values["group"]), scheme, int(values["stored_bits"]))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {shown(value)}")
    return value
