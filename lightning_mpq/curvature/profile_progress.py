"""How far a profile is, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Sized

from ..tools.progress import Progress


class ProfileProgress:
    """Reports progress with samples done and the time left."""

    def __init__(self, batches: object, estimator: str, progress: Progress | None) -> None:
        """Start now.

        Args:
            batches: What will be measured; the time left is known if it has a length.
            estimator: Name of the estimator, for messages.
            progress: Told how far it is.
        """
        self._total = len(batches) if isinstance(batches, Sized) else None
        self._estimator = estimator
        self._progress = progress
        self._start = time.monotonic()
        self._done = self._skipped = 0

    def skip(self) -> None:
        """Count a batch that was measured earlier."""
        self._done += 1
        self._skipped += 1

    def tick(self, samples: int) -> None:
        """Count a batch that was measured now and report."""
        self._done += 1
        if self._progress is None:
            return
        message = f"{self._estimator}: {samples} samples"
        if not self._total:
            self._progress(0.0, message)
            return
        seconds_each = (time.monotonic() - self._start) / (self._done - self._skipped)
        left = seconds_each * max(0, self._total - self._done)
        self._progress(min(1.0, self._done / self._total), f"{message}, {left:.0f} s left")
