"""Long work that times its stages and reports how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[float, str], None]
"""(fraction done, what is being done) to nothing."""


_WORTH_SAYING = 1.0
"""Seconds that a pace is known for before a time is said."""


def silent(fraction: float, message: str) -> None:
    """Report nothing."""


class TimeLeft:
    """Adds to every message how long the work still takes, at the pace since its first report.

    Example:
        >>> ticks = iter([0.0, 6.0, 30.0])
        >>> told = TimeLeft(lambda fraction, message: print(message), clock=lambda: next(ticks))
        >>> for fraction in (0.1, 0.2, 0.6):
        ...     told(fraction, "rounding")
        rounding
        rounding, 48 s left
        rounding, 24 s left
    """

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        """Start at the first report.

        Args:
            progress: Told the fraction and the longer message.
            clock: Seconds that go on.
        """
        self._progress, self._clock = progress, clock
        self._first: tuple[float, float] | None = None

    def __call__(self, fraction: float, message: str) -> None:
        """Pass a report on."""
        now = self._clock()
        if self._first is None:
            self._first = (fraction, now)
        done, took = fraction - self._first[0], now - self._first[1]
        if done > 0 and took >= _WORTH_SAYING:
            message = f"{message}, {_duration(took * max(0.0, 1 - fraction) / done)} left"
        self._progress(fraction, message)


def with_time_left(progress: Progress) -> TimeLeft:
    """Return a progress function that says the time left, once."""
    return progress if isinstance(progress, TimeLeft) else TimeLeft(progress)


def _duration(seconds: float) -> str:
    """Return seconds in words that a glance reads."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


@dataclass
class StageTimer:
    """Times the stages of a job, and passes its progress on.

    Attributes:
        progress: Called with how far the job is, from 0 to 1, and what it does.
        seconds: Stage to the wall time that it has taken.

    Example:
        >>> timer = StageTimer(lambda fraction, message: print(fraction, message))
        >>> with timer.stage("profile"):
        ...     timer.within(0.2, 0.6)(0.5, "halfway through the profile")
        0.4 halfway through the profile
        >>> list(timer.seconds)
        ['profile']
    """

    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def report(self, fraction: float, message: str) -> None:
        """Report how far the job is."""
        self.progress(fraction, message)

    def within(self, start: float, stop: float) -> Progress:
        """Return a progress function, with the time left, for a stage from ``start`` to ``stop`` of the job."""
        return TimeLeft(lambda fraction, message: self.report(start + fraction * (stop - start), message))

    @contextmanager
    def reporting(self, progress: Progress) -> Iterator[None]:
        """Report to a function for the time of a block."""
        before, self.progress = self.progress, progress
        try:
            yield
        finally:
            self.progress = before
