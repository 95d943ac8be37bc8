"""What each stage of a job takes: wall time, processor time, memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lightning_mpq.tools.progress import StageTimer

from ...tools.memory import peak_bytes, restart_peak


class MeasuredStages(StageTimer):
    """Notes processor time and memory of each stage beside its wall time.

    Attributes:
        processor: Stage to seconds of processor time.
        peaks: Stage to the most bytes that the process held.
    """

    def __init__(self) -> None:
        """Know none."""
        super().__init__()
        self.processor: dict[str, float] = {}
        self.peaks: dict[str, int] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block."""
        restart_peak()
        began = time.process_time()
        with super().stage(name):
            yield
        self.processor[name] = self.processor.get(name, 0.0) + time.process_time() - began
        self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes())
