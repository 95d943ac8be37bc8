"""The command as a user runs it; then its trained weights at every budget, and what the stages cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from lightning_mpq import Budget, MixedPrecisionQuantization, Report
from lightning_mpq.cli.cache_entry import cache_entry
from lightning_mpq.cli.run import run
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.profiling import measure as measure_stages
from lightning_mpq.tools.progress import StageTimer

from ...tools.results import Row

MODELS = ("float", "uniform", "additive", "chosen")


def measure(
    config: DictConfig, budgets: Sequence[float], repeats: int
) -> tuple[list[Row], dict[str, dict[str, float]], float]:
    """Return one row a (budget, model), what the stages cost, and the seconds of the command itself.

    The command runs first, as a user would run it; its trained weights are then quantized at every budget.

    Args:
        config: The composed configuration.
        budgets: Average bits.
        repeats: How often the stages are timed.
    """
    start = time.perf_counter()
    run(config)
    command = time.perf_counter() - start
    L.seed_everything(config.seed, workers=True, verbose=False)
    datamodule: L.LightningDataModule = instantiate(config.data)
    entry = cache_entry(config, instantiate(config.model), datamodule)
    state = entry.load() if entry is not None else None
    if state is None:
        raise RuntimeError("The command has left no trained weights in the cache folder.")
    rows: list[Row] = []
    for bits in budgets:
        report = quantized(config, datamodule, state, Budget(average_bits=bits))
        for row, model in zip(report.models, MODELS, strict=True):
            rows.append(
                {
                    "budget_bits": bits,
                    "model": model,
                    "name": row.name,
                    "average_bits": row.average_bits,
                    "stored_bytes": row.stored_bytes,
                    "predicted_loss": row.predicted_loss,
                    "measured_loss": row.measured_loss,
                    **row.metrics,
                }
                | ({"seconds": dict(report.seconds), "gap": report.solver["gap"]} if model == "chosen" else {})
            )
    return rows, passes(config, datamodule, state, repeats), command


def quantized(
    config: DictConfig, datamodule: L.LightningDataModule, state: Mapping[str, Tensor], budget: Budget
) -> Report:
    """Quantize trained weights under a budget; the metrics of the comparison are those of validation and test."""
    module, trainer = _module(config, state), _trainer(config)

    def evaluate() -> dict[str, float]:
        validation = trainer.validate(module, datamodule, verbose=False)[0]
        test = trainer.test(module, datamodule, verbose=False)[0]
        return {name: float(value) for name, value in {**validation, **test}.items()}

    report = _pipeline(config, budget).run(module, calibration_batches(config, datamodule), evaluate).report
    assert report is not None
    return report


def passes(
    config: DictConfig, datamodule: L.LightningDataModule, state: Mapping[str, Tensor], repeats: int
) -> dict[str, dict[str, float]]:
    """Return what rounding and profiling cost, in seconds and in forward passes over the same samples.

    Stages and plain forward passes take turns; the fastest of each is reported.
    """
    module = _module(config, state).eval()
    batches = calibration_batches(config, datamodule)
    pipeline = _pipeline(config, Budget(average_bits=4.0))
    seconds: dict[str, list[float]] = {"forward": []}
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                module(batch[0])
        seconds["forward"].append(time.perf_counter() - start)
        timer = StageTimer()
        measure_stages(pipeline.calibration(module, batches), pipeline.settings, timer)
        for stage, taken in timer.seconds.items():
            seconds.setdefault(stage, []).append(taken)
    fastest = {stage: min(taken) for stage, taken in seconds.items()}
    return {stage: {"seconds": taken, "forward_passes": taken / fastest["forward"]} for stage, taken in fastest.items()}


def calibration_batches(config: DictConfig, datamodule: Any) -> list[Any]:
    """Return the batches of training images that the callback would calibrate on."""
    datamodule.setup("fit")
    return list(islice(datamodule.calibration_dataloader(), config.callbacks.mpq.calibration_batches))


def _pipeline(config: DictConfig, budget: Budget) -> Pipeline:
    """Return what the callback of this configuration does, without a cache."""
    stages = ("candidates", "curvature", "solver", "selection", "repair")
    return MixedPrecisionQuantization(budget, **{stage: instantiate(config[stage]) for stage in stages}).job.pipeline


def _module(config: DictConfig, state: Mapping[str, Tensor]) -> L.LightningModule:
    module: L.LightningModule = instantiate(config.model)
    module.load_state_dict(state)
    return module


def _trainer(config: DictConfig) -> L.Trainer:
    trainer: L.Trainer = instantiate(config.trainer, logger=False, enable_progress_bar=False)
    return trainer
