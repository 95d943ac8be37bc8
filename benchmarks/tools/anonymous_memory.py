"""The most memory of its own that this process holds during a block, without the files that it maps."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from .memory import resident_bytes, status_bytes


class PeakMemory:
    """Looks every few milliseconds, in a thread, while its ``with`` block lasts; Linux only.

    Pages of mapped files are not counted: the system drops them where others need the memory.

    Attributes:
        before: What the process held at the start, in bytes.
        peak: The most that it held.
        seconds: CPU time of all its threads.
        wall_seconds: By the wall.
    """

    def __init__(self, period: float = 0.004) -> None:
        """Set the time in seconds between two looks."""
        self._period, self._over = period, threading.Event()
        self.before = self.peak = 0
        self.seconds = self.wall_seconds = 0.0

    def __enter__(self) -> PeakMemory:
        """Give back what was freed, and begin to look."""
        resident_bytes()
        self.before = self.peak = status_bytes("RssAnon")
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        self._start, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        self.seconds = time.process_time() - self._start
        self.wall_seconds = time.perf_counter() - self._wall
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._period):
            self.peak = max(self.peak, status_bytes("RssAnon"))
