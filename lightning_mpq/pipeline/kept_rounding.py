"""Rounded candidates in a folder, found again for exactly equal weights, candidates and data.

Another budget then rounds nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..curvature.cache.fingerprint import combine, hash_batch, hash_content, hash_settings
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..inputs.quantizer import InputRange
from ..network.calibration import Calibration
from ..network.forward import device_of
from ..rounding.packed_rows import PackedRows
from ..rounding.rounded_weights import RoundedWeights
from ..schemes import InputScheme, LayerScheme, WeightScheme
from ..tools.distributed import gather
from ..tools.files import unless_impossible, write_bytes_atomically
from ..tools.reading import parse_json, require_ordinary
from ..tools.room import free_bytes, gigabytes

_SUFFIX = ".rounded.safetensors"
_MADE = 2
"""Counts changes of how weights are rounded, so that codes of another way are not taken for those of this one."""


class KeptRounding:
    """Rounded groups in a folder, a file each: a job that was killed goes on where it was.

    On a processor codes are mapped from their file, and take no memory until they are read. Where torch.distributed is
    in use, rank 0 alone reads and writes.
    """

    def __init__(self, folder: str | Path, calibration: Calibration) -> None:
        """Look at model and data; every process calls this.

        Args:
            folder: The folder, made when it is needed.
            calibration: The model, and batches that can be gone through again.
        """
        parts = gather([hash_batch(batch) for batch in calibration.filled()])
        self._batches = [digest for part in parts for digest in part]
        self._folder, self._device = Path(folder), str(device_of(calibration.model))
        self._is_full = False
        self._settings = hash_settings(calibration.model, [], [], {"forward_fn": calibration.forward_fn, "made": _MADE})

    def find(self, group: LayerGroup, offered: Sequence[Candidate]) -> RoundedWeights | None:
        """See `KeptGroups`."""
        return _read(self._path(group, offered), self._device)

    def keep(self, group: LayerGroup, offered: Sequence[Candidate], rounded: RoundedWeights) -> RoundedWeights:
        """See `KeptGroups`; where nothing can be written, the group stays in memory."""
        if self._is_full:
            return rounded
        path, size = self._path(group, offered), rounded.stored_bytes
        free = free_bytes(self._folder)
        if free is not None and size > free:
            self._is_full = True
            warnings.warn(
                f"The cache {self._folder} has {gigabytes(free)} free, and the rounded candidates of the group "
                f"{group.name!r} take {gigabytes(size)}: they and those of later groups stay in memory, and are lost "
                "with this process. Free some space, or pass another cache_dir.",
                UserWarning,
                stacklevel=2,
            )
            return rounded
        with unless_impossible("The cache", path, "Another budget rounds anew."):
            _write(path, rounded)
        return _read(path, self._device) or rounded

    def _path(self, group: LayerGroup, offered: Sequence[Candidate]) -> Path:
        text = {"group": asdict(group), "offered": [asdict(candidate) for candidate in offered]}
        settings = f"{self._settings} {hash_content(text, {})}"
        return self._folder / f"{combine(settings, self._batches)[:32]}{_SUFFIX}"


def _write(path: Path, rounded: RoundedWeights) -> None:
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
    text: dict[str, Any] = {"candidates": offered, "rows": rows, "inputs": inputs}
    text["hash"] = hash_content(text, tensors)
    write_bytes_atomically(path, to_bytes(tensors, metadata={"rounded": json.dumps(text)}))


def _read(path: Path, device: str) -> RoundedWeights | None:
    """Read rounded weights; a file that is damaged counts as absent."""
    try:
        require_ordinary(path)
        with safe_open(path, framework="pt") as file:
            text: dict[str, Any] = parse_json((file.metadata() or {})["rounded"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if text["hash"] != hash_content(text, tensors):
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
        return RoundedWeights(tuple(offered), rows, errors, inputs)
    except Exception:  # which one, depends on the byte that is wrong
        return None
