"""Pictures and pages for loggers that take them: a figure for TensorBoard, the page for W&B and MLflow."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning.pytorch.loggers import Logger

from ..report import Report


def attach(logger: Logger, report: Report, step: int) -> None:
    """Give a logger what it takes beside numbers; nothing to one that takes nothing, as ``CSVLogger``.

    Args:
        logger: One of Lightning's, known by its name: none of their packages is needed here.
        report: The comparison.
        step: Optimizer step.
    """
    for kind in type(logger).__mro__:
        if (found := _ATTACHMENTS.get(kind.__name__)) is not None:
            found(logger, report, step)
            return


def _figure(logger: Any, report: Report, step: int) -> None:
    """Log the drawing; without matplotlib nothing."""
    if find_spec("matplotlib") is not None:
        figure, _ = report.plot()
        logger.experiment.add_figure("mpq/frontier", figure, global_step=step)  # and closes it


def _mlflow(logger: Any, report: Report, step: int) -> None:
    with TemporaryDirectory() as folder:
        logger.experiment.log_artifact(logger.run_id, str(report.to_html(Path(folder) / "report.html")))


def _wandb(logger: Any, report: Report, step: int) -> None:
    with TemporaryDirectory() as folder:
        page = report.to_html(Path(folder) / "report.html")
        logger.experiment.log_artifact(str(page), name="mpq-report", type="report")


_ATTACHMENTS: dict[str, Callable[[Any, Report, int], None]] = {
    "TensorBoardLogger": _figure,
    "MLFlowLogger": _mlflow,
    "WandbLogger": _wandb,
}
