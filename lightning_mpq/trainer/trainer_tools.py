"""What the callback needs of a Trainer: a progress bar, calibration data, and validation that leaves no trace."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn


@contextmanager
def progress_bar(trainer: L.Trainer) -> Iterator[Callable[[float, str], None]]:
    """Show one bar of the kind that the Trainer uses; none if the Trainer is silent.

    Yields:
        A function of the fraction done, from 0 to 1, and what is being done.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.is_enabled:
        # The Trainer's own live display, if it runs, must take our row: two displays cannot share a terminal.
        alive = bar.progress is not None and bar.progress.live.is_started
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        display = bar.progress if alive else Progress(*columns)
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
        with Tqdm(desc="mpq", total=100, position=position, leave=False, dynamic_ncols=True, file=sys.stdout) as row:

            def show(fraction: float, message: str) -> None:
                row.set_description_str(f"mpq: {message}", refresh=False)
                row.n = round(100 * fraction)
                row.refresh()

            yield show
    else:
        yield lambda fraction, message: None


def calibration_loader(
    trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> Iterable[Any]:
    """Return the loader of calibration batches: the user's own for that purpose, or that of the training.

    Raises:
        ValueError: If there is none, or training batches come from several loaders.
    """
    if (own := own_calibration_loader(datamodule, module)) is not None:
        return own()
    in_fit = trainer.training and trainer.train_dataloader is not None
    source = datamodule if datamodule is not None else module
    loader = trainer.train_dataloader if in_fit else source.train_dataloader()
    if loader is None or isinstance(loader, (dict, list, tuple)):
        raise ValueError(
            "Calibration needs one loader of training batches, and train_dataloader gives "
            f"{type(loader).__name__}. Define calibration_dataloader() on the datamodule or the module."
        )
    return loader


def own_calibration_loader(*sources: Any) -> Callable[[], Iterable[Any]] | None:
    """Return ``calibration_dataloader`` of the first of some datamodules and modules that has one, None if none has."""
    found = (getattr(source, "calibration_dataloader", None) for source in sources)
    return next((own for own in found if callable(own)), None)


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
