"""Long work that times its stages and tells how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[float, str], None]


@dataclass(kw_only=True)
class StagedWork:
    """Base of work in stages.

    Attributes:
        progress: Told how far the work is, from 0 to 1, and what it does.
        seconds: Stage to the wall time that it has taken.
    """

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _tell(self, fraction: float, message: str) -> None:
        if self.progress is not None:
            self.progress(fraction, message)

    def _within(self, start: float, stop: float) -> Progress:
        """Return a progress function for a stage that takes the job from ``start`` to ``stop``."""
        return lambda fraction, message: self._tell(start + fraction * (stop - start), message)
