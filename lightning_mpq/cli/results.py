"""What a job says of the packed model: the test split, and the metric that a sweep optimizes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..tools.files import unless_impossible, write_text_atomically
from ..trainer.callback import MixedPrecisionQuantization

log = logging.getLogger(__name__)


def has_test_split(module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Tell whether there is something to test, and say so if there is not."""
    if is_overridden("test_step", module) and is_overridden("test_dataloader", datamodule or module):
        return True
    log.info("Nothing is tested: the model has no test_step, or the data have no test_dataloader.")
    return False


def test_on_split(
    trainer: L.Trainer, datamodule: L.LightningDataModule | None, modules: Mapping[str, L.LightningModule], path: Path
) -> None:
    """Measure modules on the test split and write what they log: for the record, nothing is chosen by it."""
    trainer.loggers = []  # both would log under the same names
    results = {
        name: dict(trainer.test(module, datamodule=datamodule, verbose=False)[0]) for name, module in modules.items()
    }
    with unless_impossible("The file of test results", path, "They are in the log."):
        write_text_atomically(path, json.dumps(results, indent=2) + "\n")
        log.info("Test results: %s", path)
    for key in results["float"]:
        values = ", ".join(f"{name} {found[key]:.4f}" for name, found in results.items())
        log.info("On the test split: %s: %s", key, values)


def metric_of(name: str | None, mixed: MixedPrecisionQuantization) -> float | None:
    """Return a validation metric of the packed model; without a name the first accuracy, or else the first of all."""
    if mixed.report is None:
        return None
    metrics = mixed.report.models[-1].metrics
    if not metrics:
        return None  # the module does not validate, or its validation failed: that has been said
    if name is None:
        return next((value for key, value in metrics.items() if "acc" in key), next(iter(metrics.values())))
    if name not in metrics:
        raise ValueError(f"metric={name} is not among what validation logs: {', '.join(metrics)}.")
    return metrics[name]
