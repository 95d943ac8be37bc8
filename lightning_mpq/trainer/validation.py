"""A module's own validation, run without a trace in callbacks and loggers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from lightning.pytorch.trainer.states import RunningStage, TrainerFn


def validation_metrics(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None = None
) -> dict[str, float]:
    """Run the module's validation and return what it logged, without a trace in callbacks and loggers.

    At the end of a fit the fit's own validation loop runs, on its own loaders (``trainer.validate`` would unwrap
    the model of a fit that is not over yet); otherwise ``trainer.validate``. Other callbacks do not see it: the
    models that are compared must not become anybody's best checkpoint, or stop a training early.

    Returns:
        Metric name to value; empty if the module does not validate.
    """
    in_fit = trainer.state.fn == TrainerFn.FITTING and trainer.state.stage is not None
    with _unseen(trainer):
        if not in_fit:
            results = trainer.validate(module, datamodule=datamodule, verbose=False)
        else:
            stage = trainer.state.stage
            trainer.state.stage = RunningStage.VALIDATING
            try:
                results = trainer.fit_loop.epoch_loop.val_loop.run()
            finally:
                trainer.state.stage = stage
    return {name: float(value) for result in results for name, value in result.items()}


@contextmanager
def _unseen(trainer: L.Trainer) -> Iterator[None]:
    """Hide callbacks and loggers from the Trainer for a while, and what is logged in it from them afterwards."""
    names = ("callbacks", "loggers")
    before = {name: getattr(trainer, name) for name in names}
    connector = trainer._logger_connector
    kept = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
    metrics = {name: dict(getattr(connector, name)) for name in kept}
    try:
        for name in names:
            setattr(trainer, name, [])
        yield
    finally:
        for name, value in before.items():
            setattr(trainer, name, value)
        for name, values in metrics.items():
            setattr(connector, name, values)
