"""Time against a limit, and the seconds that each step took."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """A stopwatch that starts when it is made.

    Args:
        limit: Seconds; may be infinite.
        timer: What counts them: wall time, unless another load on the machine is to be left out.
    """

    def __init__(self, limit: float, timer: Callable[[], float] = time.monotonic) -> None:
        """Start now."""
        self._timer = timer
        self._begin = self._last = timer()
        self.limit = limit
        self.seconds: dict[str, float] = {}

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (self._timer() - self._begin)

    def out_of_time(self) -> bool:
        """Return whether the limit is reached."""
        return self.left() <= 0

    def note(self, step: str) -> None:
        """Book the time since the last note on a step."""
        now = self._timer()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now
