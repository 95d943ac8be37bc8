"""How the pipeline works inside a fit: on the Trainer's batches, behind its progress bar, without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from ..pipeline.pipeline import Pipeline
from .strategies import share_of_batches
from .trainer_tools import calibration_loader, progress_bar


def batches_in_fit(trainer: L.Trainer, module: L.LightningModule, count: int) -> list[Any]:
    """Return this process's share of the calibration batches, converted and moved as training does.

    Args:
        trainer: In its fit.
        module: What it trains.
        count: How many batches, all processes together.
    """
    loader = calibration_loader(trainer, module, getattr(trainer, "datamodule", None))
    convert, move = trainer.precision_plugin.convert_input, trainer.strategy.batch_to_device
    return [move(convert(batch)) for batch in share_of_batches(loader, count)]


@contextmanager
def at_work(trainer: L.Trainer, pipeline: Pipeline) -> Iterator[None]:
    """Show the pipeline's progress, and leave random states as they were."""
    with isolate_rng(), progress_bar(trainer) as progress:
        pipeline.progress = progress
        try:
            yield
        finally:
            pipeline.progress = None
