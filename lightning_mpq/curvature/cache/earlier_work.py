"""What earlier calls of `profile` measured already, and what this one leaves to later ones: one folder for both."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from ...tools.distributed import active, broadcast, errors_shared, gather, on_rank_zero, rank
from ...tools.files import unless_impossible
from ..accumulation import Accumulator
from ..estimators.measurement import Measurement
from ..taylor_model import TaylorModel
from .cache import TaylorCache
from .fingerprint import hash_batch
from .kept_measurements import KeptMeasurements
from .ranks import shares_of_ranks

_STORE_SECONDS = 30.0
"""At most this much work is lost by an interruption."""


class EarlierWork:
    """Finds, keeps and stores measurements; does nothing without a folder, nor in one that cannot be used.

    All processes must do the same with it in the same order; only rank 0 reads and writes whole models, and
    measurements of single batches are kept by a single process only.

    Attributes:
        batches: The batches; a list where there is a folder.
        result: The Taylor model, if everything was measured already.
    """

    def __init__(
        self,
        folder: str | Path | None,
        settings_hash: str,
        batches: Iterable[Any],
        kept: Callable[[Path], KeptMeasurements],
    ) -> None:
        """Look for models of these batches or of some of them.

        Args:
            folder: Where they are; None for nowhere.
            settings_hash: Hash of everything but data.
            batches: The batches of this process.
            kept: Folder to what was kept of single batches.
        """
        self.batches = batches
        self.result: TaylorModel | None = None
        self._part: TaylorModel | None = None
        self._cache = None if folder is None else TaylorCache(folder, settings_hash)
        self._kept: KeptMeasurements | None = None
        self._hashes: list[str] = []
        self._done: Counter[str] = Counter()
        self._last_store = time.monotonic()
        if self._cache is None:
            return
        with errors_shared():
            self.batches = list(batches)
            self._hashes = [hash_batch(batch) for batch in self.batches]
        hashes = gather(self._hashes)
        found = on_rank_zero(partial(self._find, [digest for digests in hashes for digest in digests]))
        if found is not None and len(found.batch_hashes) == sum(map(len, hashes)):
            self.result = found
            return
        if found is not None:
            self._part, self._done = found, shares_of_ranks(found.batch_hashes, hashes)[rank()]
        if not active():
            with self._usable("Everything is measured anew."):
                self._kept = kept(self._cache.folder)

    def continue_in(self, sums: Accumulator) -> None:
        """Let sums begin with those of the batches that were measured already; rank 0 has them for all."""
        if self._part is not None and rank() == 0:
            sums.continue_from(self._part)

    def digest(self, number: int, batch: Any) -> str:
        """Return the hash of this process's batch of a number, from 0."""
        return self._hashes[number] if self._cache is not None else hash_batch(batch)

    def is_done(self, digest: str) -> bool:
        """Tell whether a batch is in the sums already; each measurement counts for one batch."""
        if not self._done[digest]:
            return False
        self._done[digest] -= 1
        return True

    def known(self, digest: str, place: int) -> tuple[Measurement | None, Sequence[int]]:
        """Return what is known of a chunk of a batch, and of which candidates; None of nothing."""
        return (None, ()) if self._kept is None else self._kept.get(digest, place)

    def keep(self, digest: str, parts: Sequence[Measurement]) -> None:
        """Keep the measurement of a batch for later calls with other candidates."""
        if self._kept is not None:
            self._kept.add(digest, parts)

    def store_sometimes(self, sums: Accumulator) -> None:
        """Store what there is if an interruption would lose much."""
        if self._cache is not None and broadcast(time.monotonic() - self._last_store > _STORE_SECONDS):
            self.store(sums.result())

    def store(self, result: TaylorModel) -> None:
        """Store a model, and what was kept of single batches."""
        if self._cache is None:
            return
        on_rank_zero(partial(self._write, self._cache, result))
        self._last_store = time.monotonic()

    def _find(self, hashes: Sequence[str]) -> TaylorModel | None:
        assert self._cache is not None
        with self._usable("Everything is measured anew."):
            return self._cache.find(hashes)
        return None

    def _write(self, cache: TaylorCache, result: TaylorModel) -> None:
        with self._usable("The measurement goes on without it, and is not found again."):
            cache.store(result)
            if self._kept is not None:
                self._kept.store()

    def _usable(self, instead: str) -> AbstractContextManager[None]:
        """Let a folder that cannot be read or written (full, read-only, no folder) cost the cache only."""
        assert self._cache is not None
        return unless_impossible("The cache", self._cache.folder, instead)
