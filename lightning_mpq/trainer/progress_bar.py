"""One more bar beside those of a Trainer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.utilities.seed import isolate_rng
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from ..tools.progress import Progress, StageTimer, silent


@contextmanager
def working(trainer: L.Trainer, timer: StageTimer) -> Iterator[None]:
    """Show the progress of a job beside that of the Trainer, and leave random states as they were."""
    with isolate_rng(), progress_bar(trainer) as progress, timer.reporting(progress):
        yield


@contextmanager
def progress_bar(trainer: L.Trainer) -> Iterator[Progress]:
    """Show one bar of the kind that the Trainer uses; none if the Trainer is silent.

    Yields:
        A function of the fraction done, from 0 to 1, and what is being done.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.is_enabled:
        # The Trainer's own live display, if it runs, must take our row: two displays cannot share a terminal.
        alive = bar.progress is not None and bar.progress.live.is_started
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        display = bar.progress if alive else RichProgress(*columns)
        assert display is not None
        row = display.add_task("mpq", total=100, visible=True)
        if not alive:
            display.start()
        try:
            yield lambda fraction, message: display.update(row, completed=100 * fraction, description=f"mpq: {message}")
        finally:
            display.update(row, visible=False)
            if not alive:
                display.stop()
    elif isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        position = 2 * bar.process_position
        with Tqdm(desc="mpq", total=100, position=position, leave=False, dynamic_ncols=True, file=sys.stdout) as tqdm:

            def show(fraction: float, message: str) -> None:
                tqdm.set_description_str(f"mpq: {message}", refresh=False)
                tqdm.n = round(100 * fraction)
                tqdm.refresh()

            yield show
    else:
        yield silent
