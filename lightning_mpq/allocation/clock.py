"""Wall time against a limit, and the seconds that each step took."""

from __future__ import annotations

import time


class Clock:
    """A stopwatch that starts when it is made.

    Args:
        limit: Seconds; may be infinite.
    """

    def __init__(self, limit: float) -> None:
        """Start now."""
        self._begin = self._last = time.monotonic()
        self.limit = limit
        self.seconds: dict[str, float] = {}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (time.monotonic() - self._begin)

    def out_of_time(self) -> bool:
        """Return whether the limit is reached."""
        return self.left() <= 0

    def note(self, step: str) -> None:
        """Book the time since the last note on a step."""
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now
