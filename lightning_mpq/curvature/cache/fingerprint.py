"""Content hashes: of a batch, and of everything that decides a Taylor model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn

from ...groups.candidates import Candidate
from ...groups.groups import LayerGroup
from .attributes import describe_attributes


def hash_tensor(tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's type, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{plain.dtype}{list(plain.shape)}".encode())
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.digest()


def hash_content(text: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of a file's whole content, by which a damaged one is known, in hexadecimal.

    Args:
        text: What is written as JSON; its ``hash`` does not count.
        tensors: The tensors by name.
    """
    own = {key: value for key, value in text.items() if key != "hash"}
    digest = hashlib.sha256(json.dumps(own, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode() + hash_tensor(tensors[name]))
    return digest.hexdigest()


def hash_batch(batch: Any) -> str:
    """Return a hash of the structure of a batch and of all values in it, in hexadecimal.

    Objects that are no tensor, tuple, list or mapping count by their ``repr``, or by their attributes if they
    have any, so that equal hashes mean equal data for plain containers of tensors.
    """
    return _hash_batch(batch).hex()


def _hash_batch(batch: Any) -> bytes:
    digest = hashlib.sha256(type(batch).__name__.encode())
    if isinstance(batch, Tensor):
        digest.update(hash_tensor(batch))
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            digest.update(repr(key).encode() + _hash_batch(value))
    elif isinstance(batch, (tuple, list)):
        for item in batch:
            digest.update(_hash_batch(item))
    elif hasattr(batch, "__dict__"):
        digest.update(_hash_batch(dict(vars(batch))))
    else:
        digest.update(repr(batch).encode())
    return digest.digest()


def hash_state(model: nn.Module) -> str:
    """Return a hash of all parameters and buffers, by name, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        digest.update(name.encode() + hash_tensor(value))
    return digest.hexdigest()


def hash_model(model: nn.Module) -> str:
    """Return a hash of a model and the version of this package, in hexadecimal.

    The model counts by its parameters and buffers, its module tree as printed, the code of every ``forward``
    and of its ``training_step``, and what else its modules hold, see `describe_attributes`.
    """
    digest = hashlib.sha256(_package_version().encode())
    digest.update(repr(model).encode())
    kinds = sorted({type(module) for module in model.modules()}, key=lambda kind: (kind.__module__, kind.__qualname__))
    code = [_describe(getattr(kind, method, None)) for kind in kinds for method in ("forward", "training_step")]
    digest.update(json.dumps(code, default=repr).encode())
    digest.update(json.dumps(describe_attributes(model)).encode())
    digest.update(hash_state(model).encode())
    return digest.hexdigest()


def hash_settings(
    model: str, groups: Sequence[LayerGroup], candidates: Sequence[Candidate], settings: Mapping[str, object]
) -> str:
    """Return a hash of the model (`hash_model`), groups, candidates and estimator settings, in hexadecimal."""
    described = {
        "groups": [asdict(group) for group in groups],
        "candidates": [asdict(candidate) for candidate in candidates],
        "settings": {name: _describe(value) for name, value in settings.items()},
    }
    return hashlib.sha256((model + json.dumps(described, sort_keys=True, default=repr)).encode()).hexdigest()


def combine(settings: str, batches: Iterable[str]) -> str:
    """Return the fingerprint of a Taylor model: settings and batches, these in any order.

    Batches are summed over, so that their order (and with it, the way data is divided) does not count.
    """
    return hashlib.sha256(" ".join([settings, *sorted(batches)]).encode()).hexdigest()


def _describe(value: object) -> object:
    """Return a setting so that equal descriptions mean equal behaviour, as far as can be seen from outside.

    Functions count by their code, defaults and captured values; anything whose ``repr`` holds an address differs from
    process to process, which costs a cache hit and never gives a wrong one.
    """
    if isinstance(value, partial):
        return [_describe(value.func), repr(value.args), repr(value.keywords)]
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        captured = [repr(cell.cell_contents) for cell in getattr(value, "__closure__", None) or ()]
        owner = getattr(value, "__self__", None)
        state = repr(owner) if owner is not None and not isinstance(owner, nn.Module) else ""
        defaults = [repr(getattr(value, name, None)) for name in ("__defaults__", "__kwdefaults__")]
        return [_describe_code(code), captured, defaults, state]
    return repr(value)


def _describe_code(code: CodeType) -> list[object]:
    constants = [_describe_code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_name, hashlib.sha256(code.co_code).hexdigest(), constants, repr(code.co_names)]


def _package_version() -> str:
    try:
        return f"{version('lightning_mpq')} torch {torch.__version__}"
    except PackageNotFoundError:
        return f"unknown torch {torch.__version__}"
