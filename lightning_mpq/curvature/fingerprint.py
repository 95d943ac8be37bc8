"""Content hashes: of a batch, and of everything that decides a Taylor model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from ..candidates import Candidate
from ..groups import LayerGroup


def hash_tensor(tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{list(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.digest()


def hash_batch(batch: Any) -> bytes:
    """Return a hash of the structure of a batch and of all values in it.

    Objects that are no tensor, tuple, list or mapping count by their ``repr``, or by their attributes if they
    have any, so that equal hashes mean equal data for plain containers of tensors.
    """
    digest = hashlib.sha256(type(batch).__name__.encode())
    if isinstance(batch, Tensor):
        digest.update(hash_tensor(batch))
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            digest.update(repr(key).encode() + hash_batch(value))
    elif isinstance(batch, (tuple, list)):
        for item in batch:
            digest.update(hash_batch(item))
    elif hasattr(batch, "__dict__"):
        digest.update(hash_batch(dict(vars(batch))))
    else:
        digest.update(repr(batch).encode())
    return digest.digest()


def hash_settings(
    model: nn.Module,
    groups: Sequence[LayerGroup],
    candidates: Sequence[Candidate],
    settings: Mapping[str, object],
) -> bytes:
    """Return a hash of the weights, groups, candidates, estimator settings and the version of this package."""
    digest = hashlib.sha256(_package_version().encode())
    digest.update(f"{type(model).__module__}.{type(model).__qualname__}".encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(hash_tensor(value) if isinstance(value, Tensor) else repr(value).encode())
    described = {
        "groups": [asdict(group) for group in groups],
        "candidates": [asdict(candidate) for candidate in candidates],
        "settings": {name: _describe(value) for name, value in settings.items()},
    }
    digest.update(json.dumps(described, sort_keys=True, default=repr).encode())
    return digest.digest()


def combine(settings: bytes, batches: Iterable[bytes]) -> str:
    """Return the fingerprint of a Taylor model: settings and batches, these in any order.

    Batches are summed over, so that their order (and with it, the way data is divided) does not count.
    """
    digest = hashlib.sha256(settings)
    for batch in sorted(batches):
        digest.update(batch)
    return digest.hexdigest()


def _describe(value: object) -> object:
    """Return a setting as something that is equal in every process: code for functions, repr for the rest."""
    code = getattr(value, "__code__", None)
    if code is not None:
        where = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
        return [where, hashlib.sha256(code.co_code).hexdigest(), repr(code.co_consts), repr(code.co_names)]
    return repr(value)


def _package_version() -> str:
    try:
        return f"{version('lightning_mpq')} torch {torch.__version__}"
    except PackageNotFoundError:
        return f"unknown torch {torch.__version__}"
