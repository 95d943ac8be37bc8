"""Rounded candidates in a folder, found again for exactly equal weights, candidates and data.

Another budget then rounds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..curvature.cache.fingerprint import combine, hash_batch, hash_content, hash_model, hash_settings
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.calibration import Calibration
from ..network.forward import device_of
from ..rounding.rounded_weights import RoundedWeights
from ..tools.distributed import gather
from .kept_files import KeptFiles

_MADE = 5
"""Counts changes of how weights are rounded, so that codes of another way are not taken for those of this one."""


class KeptRounding:
    """Rounded groups in a folder, a file each: a job that was killed goes on where it was.

    Where torch.distributed is in use, rank 0 alone reads and writes.
    """

    def __init__(self, folder: str | Path, calibration: Calibration) -> None:
        """Look at model and data; every process calls this.

        Args:
            folder: The folder, made when it is needed.
            calibration: The model, and batches that can be gone through again.
        """
        parts = gather([hash_batch(batch) for batch in calibration.filled()])
        self._batches = [digest for part in parts for digest in part]
        self._files = KeptFiles(folder, str(device_of(calibration.model)))
        settings = {"forward_fn": calibration.forward_fn, "made": _MADE}
        self._settings = hash_settings(hash_model(calibration.model), [], [], settings)

    def find(self, group: LayerGroup, offered: Sequence[Candidate]) -> RoundedWeights | None:
        """See `KeptGroups`."""
        found = self._files.find(self._name(group, offered))
        return None if found is None else found[0]

    def keep(self, group: LayerGroup, offered: Sequence[Candidate], rounded: RoundedWeights) -> RoundedWeights:
        """See `KeptGroups`; where nothing can be written, the group stays in memory."""
        return self._files.keep(self._name(group, offered), rounded, f"the group {group.name!r} as it was rounded")

    def _name(self, group: LayerGroup, offered: Sequence[Candidate]) -> str:
        text = {"group": asdict(group), "offered": [asdict(candidate) for candidate in offered]}
        return combine(f"{self._settings} {hash_content(text, {})}", self._batches)[:32]
