"""Long work that times its stages and reports how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[float, str], None]
"""(fraction done, what is being done) to nothing."""


def silent(fraction: float, message: str) -> None:
    """Report nothing."""


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
        """Return a progress function for a stage that takes the job from ``start`` to ``stop``."""
        return lambda fraction, message: self.report(start + fraction * (stop - start), message)

    @contextmanager
    def reporting(self, progress: Progress) -> Iterator[None]:
        """Report to a function for the time of a block."""
        before, self.progress = self.progress, progress
        try:
            yield
        finally:
            self.progress = before
