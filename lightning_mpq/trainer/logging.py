"""The report, for the Trainer's loggers, its log directory and its user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from ..modules import packed_layers, stored_bytes
from ..report import ModelRow, Report, print_report
from ..report.metric_values import MetricValues
from .attachments import attach


def publish(trainer: L.Trainer, report: Report, report_path: str | Path | None) -> None:
    """Log the numbers of a report, write it beside the logs (JSON and page), print it where there is a progress bar.

    What does not take it (a full disk, a folder in the place of the file, a logger) is warned of: the model is packed
    by now, and must not be lost for a record of it.

    Args:
        trainer: Says where.
        report: The comparison.
        report_path: File for the JSON, relative to the Trainer's log directory; the page gets its name with ``.html``.
            None for no file.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # which all processes must ask for
    if not trainer.is_global_zero:
        return
    scalars = {f"mpq/{name}": value for name, value in report.scalars().items()}
    for logger in trainer.loggers:
        with _going_on(f"logged by {type(logger).__name__}"):
            logger.log_metrics(scalars, step=trainer.global_step)
            attach(logger, report, trainer.global_step)
            logger.save()
    if report_path is not None:
        with _going_on(f"written to {folder / report_path}"):
            rank_zero_info(f"MixedPrecisionQuantization: report written to {report.save(folder / report_path)}")
        page = (folder / report_path).with_suffix(".html")
        with _going_on(f"written to {page}"):
            rank_zero_info(f"MixedPrecisionQuantization: page to decide from: {report.to_html(page)}")
    if getattr(trainer.progress_bar_callback, "is_enabled", False):
        with _going_on("printed"):
            print_report(report)


@contextmanager
def _going_on(done: str) -> Iterator[None]:
    """Warn of what fails in a block, and go on."""
    try:
        yield
    except Exception as error:  # whatever a logger raises
        rank_zero_warn(
            f"The report could not be {done} ({type(error).__name__}: {error}). The model is quantized; the report is "
            "in the callback's attribute `report`, whose save(path) writes it.",
            category=UserWarning,
        )


def finetuned_row(module: nn.Module, metrics: Mapping[str, float]) -> ModelRow:
    """Return the row of a report for a model that was fine-tuned and packed.

    Its loss is not compared with that of the float model, which is gone.
    """
    layers = {id(layer.packed_codes): layer for layer in packed_layers(module).values()}
    weights = sum(prod(layer.row_shape) for layer in layers.values())
    stored, values = stored_bytes(module), MetricValues(metrics)
    return ModelRow(
        name="fine-tuned",
        average_bits=8 * stored.packed / weights,
        stored_bytes=stored.total,
        predicted_loss=None,
        measured_loss=None,
        metrics=dict(values),
        intervals=values.intervals,
    )
