"""Time against a limit, the seconds that each step took, and whether another step still fits."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_SECONDS_PER_OPERATION = 2e-10
"""What an operation of dense linear algebra is taken to cost until some were measured: half of a slow core's speed."""

_CORNER = 640
"""Rows of the corner of a matrix whose product is timed; it takes some 30 ms."""


class Clock:
    """A stopwatch that starts when it is made.

    Args:
        limit: Seconds; may be infinite.
        timer: What counts them: wall time, unless another load on the machine is to be left out.
    """

    def __init__(self, limit: float, timer: Callable[[], float] = time.monotonic) -> None:
        """Start now."""
        self.now = timer
        self._begin = self._last = timer()
        self.limit = limit
        self.seconds: dict[str, float] = {}
        self._pace, self._paced = _SECONDS_PER_OPERATION, False

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.limit - (self.now() - self._begin)

    def out_of_time(self) -> bool:
        """Return whether the limit is reached."""
        return self.left() <= 0

    def part(self, share: float) -> Callable[[], bool]:
        """Return what says whether a share of the time that is left now is used up."""
        until = self.now() + share * max(self.left(), 0.0)
        return lambda: self.now() >= until

    def fits(self, operations: float) -> bool:
        """Return whether dense linear algebra of so many operations is expected to end in time."""
        return operations * self._pace < self.left()

    def measured(self, operations: float, seconds: float) -> None:
        """Learn what operations cost here and now; small ones, whose time is overhead, teach nothing."""
        if operations > 1e8:
            self._pace = seconds / operations
            self._paced = True

    def learn(self, matrix: NDArray[np.float64]) -> None:
        """Time the product of a corner of a matrix, before work on the whole of it that takes far longer."""
        if len(matrix) < 2 * _CORNER or self._paced:
            return
        corner = matrix[:_CORNER, :_CORNER]
        began = self.now()
        corner @ corner
        self.measured(_CORNER**3, self.now() - began)

    def note(self, step: str) -> None:
        """Book the time since the last note on a step."""
        now = self.now()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self._last
        self._last = now
