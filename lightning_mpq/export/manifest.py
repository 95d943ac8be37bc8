"""The JSON beside the tensors of a saved model: policy, names, shapes, types and the hash of everything."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CorruptModelError
from ..policy import BitPolicy
from ..tools.checks import shown
from ..tools.reading import parse_json, read_text

MANIFEST_NAME = "lightning_mpq.json"
WEIGHTS_NAME = re.compile(r"weights-[0-9a-f]{16}\.safetensors")
FORMAT = "lightning_mpq.model"
VERSION = 2
REMEDY = "Fetch the files again, or save the model again."


@dataclass(frozen=True)
class TensorRecord:
    """What is known of one saved tensor.

    Attributes:
        dtype: Its type, as in ``torch.float32`` without ``torch.``.
        shape: Its shape.
        sha256: Hash of its bytes in row-major order.
    """

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def nbytes(self) -> int:
        """Bytes of its values."""
        return int(getattr(torch, self.dtype).itemsize) * prod(self.shape)

    @classmethod
    def of(cls, tensor: Tensor) -> TensorRecord:
        """Describe a tensor."""
        return cls(dtype_name(tensor.dtype), tuple(tensor.shape), tensor_sha256(tensor))


@dataclass(frozen=True)
class Manifest:
    """Everything about a saved model but its numbers.

    Attributes:
        model_class: Qualified name of the class that was saved; for messages only.
        policy: Which layers are packed, and how.
        compute_dtypes: Packed layer to the type that its weight is computed to.
        weight_shapes: Packed layer to the shape of its weight, which the stored tensors do not tell.
        weights_file: Name of the tensor file in the same folder.
        weights_bytes: Its size.
        header_sha256: Hash of its header, length included.
        tensors: Name to record of each tensor in the file.
        aliases: Further names of shared tensors, each to the name in ``tensors``.
    """

    model_class: str
    policy: BitPolicy
    compute_dtypes: Mapping[str, str]
    weight_shapes: Mapping[str, tuple[int, ...]]
    weights_file: str
    weights_bytes: int
    header_sha256: str
    tensors: Mapping[str, TensorRecord]
    aliases: Mapping[str, str]

    def to_json(self) -> str:
        """Return JSON text that ends with the hash of all before it."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "model_class": self.model_class,
            "policy": json.loads(self.policy.to_json()),
            "compute_dtypes": dict(self.compute_dtypes),
            "weight_shapes": {name: list(shape) for name, shape in self.weight_shapes.items()},
            "weights_file": self.weights_file,
            "weights_bytes": self.weights_bytes,
            "header_sha256": self.header_sha256,
            "tensors": {
                name: {"dtype": record.dtype, "shape": list(record.shape), "sha256": record.sha256}
                for name, record in self.tensors.items()
            },
            "aliases": dict(self.aliases),
        }
        return json.dumps({**body, "sha256": _body_sha256(body)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            text: The JSON text.
            source: Where it comes from, for messages.

        Raises:
            CorruptModelError: If it is no JSON, foreign, of another version, altered or malformed.
        """
        try:
            body = parse_json(text)
        except ValueError as error:
            raise CorruptModelError(f"{source} is not JSON ({error}); it is damaged or cut off. {REMEDY}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            raise CorruptModelError(f"{source} is not a model saved by lightning_mpq: it lacks the format {FORMAT!r}.")
        if body.get("version") != VERSION:
            raise CorruptModelError(
                f"{source} has format version {shown(body.get('version'))}; this release reads version {VERSION}. "
                "Use a release of lightning_mpq that reads it, or save the model again."
            )
        try:
            if body.pop("sha256", None) != _body_sha256(body):
                raise CorruptModelError(f"{source} was altered after it was saved: its hash differs. {REMEDY}")
            return cls._parse(body)
        except CorruptModelError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise CorruptModelError(f"{source} is malformed: {error!r}. {REMEDY}") from error

    @classmethod
    def _parse(cls, body: dict[str, Any]) -> Manifest:
        tensors = {
            name: TensorRecord(_text(record["dtype"]), _shape(record["shape"]), _text(record["sha256"]))
            for name, record in body["tensors"].items()
        }
        aliases = _texts(body["aliases"])
        if stray := [alias for alias, name in aliases.items() if name not in tensors or alias in tensors]:
            raise ValueError(f"the alias {stray[0]!r} does not stand for a saved tensor")
        if not WEIGHTS_NAME.fullmatch(_text(body["weights_file"])):  # never follow a path out of the folder
            raise ValueError(f"{body['weights_file']!r} is not the name of a tensor file")
        return cls(
            model_class=_text(body["model_class"]),
            policy=BitPolicy.from_json(json.dumps(body["policy"])),
            compute_dtypes=_texts(body["compute_dtypes"]),
            weight_shapes={_text(name): _shape(shape) for name, shape in body["weight_shapes"].items()},
            weights_file=body["weights_file"],
            weights_bytes=_count(body["weights_bytes"]),
            header_sha256=_text(body["header_sha256"]),
            tensors=tensors,
            aliases=aliases,
        )


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a saved model.

    Raises:
        CorruptModelError: If there is none, or it cannot be read.
    """
    path = folder / MANIFEST_NAME
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorruptModelError(
            f"There is no saved model in {folder}: {MANIFEST_NAME} is missing. Give the folder that save() wrote."
        ) from error
    except UnicodeDecodeError as error:
        raise CorruptModelError(f"{path} is not text ({error}). {REMEDY}") from error
    except (OSError, ValueError) as error:
        raise CorruptModelError(f"{path} cannot be read: {error}") from error
    return Manifest.from_json(text, str(path))


def tensor_sha256(tensor: Tensor) -> str:
    """Return the hash of a tensor's bytes in row-major order, whatever its type and device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(flat.view(torch.uint8).numpy().data).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _body_sha256(body: Mapping[str, Any]) -> str:
    """Hash a JSON object whatever its spacing and order of keys."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {shown(value)}")
    return value


def _texts(values: Any) -> dict[str, str]:
    return {_text(key): _text(value) for key, value in values.items()}


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a count, got {shown(value)}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list of sizes, got {shown(value)}")
    return tuple(map(_count, value))
