"""A folder of Taylor models by content: found again only for exactly equal weights, candidates, settings and data.

Each file is the measurement of some batches. A measurement that was interrupted, or of less data, is continued: its
batches are left out and its sums taken over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...errors import CorruptModelError
from ...tools.warning import warn
from ..taylor_model import TaylorModel
from .fingerprint import combine

_SUFFIX = ".taylor.safetensors"


class TaylorCache:
    """Taylor models with one settings hash in a folder; an unreadable or damaged file counts as absent.

    Attributes:
        folder: The folder.
    """

    def __init__(self, folder: str | Path, settings_hash: str) -> None:
        """Look nowhere yet; the folder is made when something is stored."""
        self.folder = Path(folder)
        self._settings = settings_hash
        self._stored: Path | None = None

    def find(self, batch_hashes: Sequence[str]) -> TaylorModel | None:
        """Return the stored model that covers most of the given batches, and none but these."""
        exact = self._read(self._path(combine(self._settings, batch_hashes)))
        if exact is not None and Counter(exact.batch_hashes) == Counter(batch_hashes):
            return exact
        best: TaylorModel | None = None
        for path in sorted(self.folder.glob(f"{self._settings[:32]}-*{_SUFFIX}")):
            model = self._read(path)
            covered = model is not None and Counter(model.batch_hashes) <= Counter(batch_hashes)
            if model is not None and covered and (best is None or model.samples > best.samples):
                best = model
        return best

    def store(self, model: TaylorModel) -> None:
        """Write a model; an earlier part of the same measurement that this object wrote is removed."""
        path = self._path(model.fingerprint)
        model.save(path)
        if self._stored not in (None, path):
            assert self._stored is not None
            self._stored.unlink(missing_ok=True)
        self._stored = path

    def _read(self, path: Path) -> TaylorModel | None:
        try:
            model = TaylorModel.load(path)
        except CorruptModelError as error:
            warn(f"A cache entry is left aside and measured again: {error}")
            return None
        except OSError:
            return None
        whole = model.fingerprint == combine(model.settings_hash, model.batch_hashes)
        usable = model.settings_hash == self._settings and "blocks.curvature" in (model.sums or {})
        return model if whole and usable else None

    def _path(self, fingerprint: str) -> Path:
        return self.folder / f"{self._settings[:32]}-{fingerprint[:32]}{_SUFFIX}"
