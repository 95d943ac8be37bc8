"""How far a profile is, and how long it still takes."""

from __future__ import annotations

from collections.abc import Sized

from ..tools.progress import Progress, with_time_left


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
        self._progress = None if progress is None else with_time_left(progress)
        self._done = 0

    def skip(self) -> None:
        """Count a batch that was measured earlier."""
        self._done += 1

    def tick(self, samples: int) -> None:
        """Count a batch that was measured now and report."""
        self._done += 1
        if self._progress is not None:
            done = min(1.0, self._done / self._total) if self._total else 0.0
            self._progress(done, f"{self._estimator}: {samples} samples")
