"""The main job, measured: train, then quantize at several budgets; four models each, on the test split.

The plans are made from training images alone; validation and test images only report. Figures of the test split are
the ones in README.

    python -m benchmarks.main_job digits
    python -m benchmarks.main_job fashion_mnist --root DIR
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_mpq.allocation import Budget
from lightning_mpq.cli.main import cache_entry, run
from lightning_mpq.report import Report
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

from .common import Demand, write_results

BUDGETS = (2.25, 2.5, 3.0, 4.0)
QUICK = ["trainer.max_epochs=1", "callbacks.mpq.calibration_batches=1"]
QUICK += [f"+trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
MODELS = ("float", "uniform", "additive", "chosen")


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=("digits", "fashion_mnist"))
    parser.add_argument("--root", help="folder of the four IDX files (fashion_mnist)")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="average bits")
    parser.add_argument("--quick", action="store_true", help="one epoch of two batches, to see that everything runs")
    parser.add_argument("--cache", default="outputs/cache", help="folder where trained weights are kept")
    parser.add_argument("--output", type=Path, help="file to write; default benchmarks/results/main_job-NAME.json")
    arguments = parser.parse_args()
    overrides = [f"experiment={arguments.experiment}", f"cache_dir={arguments.cache}"]
    overrides += [f"data.root={arguments.root}"] if arguments.root else []
    overrides += QUICK if arguments.quick else []
    with TemporaryDirectory() as scratch, initialize_config_module("lightning_mpq.conf", version_base="1.3"):
        config = compose("config", [*overrides, f"output_dir={scratch}"])
        rows, cost, command = measure(config, arguments.budgets)
    _print(rows, cost)
    path = write_results(
        f"main_job-{arguments.experiment}",
        settings={
            "budgets": list(arguments.budgets),
            "seed": config.seed,
            "epochs": config.trainer.max_epochs,
            "command_seconds": command,
            "stages": cost,
            "calibration_batches": config.callbacks.mpq.calibration_batches,
            "widths": list(config.candidates.bits),
            "skipped": [],
        },
        results=rows,
        demands=_demands(arguments.experiment, rows, cost),
        output=arguments.output,
    )
    print(f"written to {path}")


def measure(config: DictConfig, budgets: Sequence[float]) -> tuple[list[dict[str, Any]], dict[str, Any], float]:
    """Return one row a (budget, model), what profiling costs, and the seconds of the command itself.

    The command runs first, as a user would run it; its trained weights are then quantized at every budget.
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
    rows: list[dict[str, Any]] = []
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
    return rows, passes(config, datamodule, state), command


def quantized(
    config: DictConfig, datamodule: L.LightningDataModule, state: Mapping[str, Tensor], budget: Budget
) -> Report:
    """Quantize trained weights under a budget; the verdict's metrics are those of validation and test."""
    module: L.LightningModule = instantiate(config.model)
    module.load_state_dict(state)
    trainer = _trainer(config)
    mixed = MixedPrecisionQuantization(
        budget,
        candidates=instantiate(config.candidates),
        curvature=instantiate(config.curvature),
        solver=instantiate(config.solver),
    )

    def evaluate() -> dict[str, float]:
        validation = trainer.validate(module, datamodule, verbose=False)[0]
        test = trainer.test(module, datamodule, verbose=False)[0]
        return {name: float(value) for name, value in {**validation, **test}.items()}

    report = mixed.pipeline.run(module, calibration(config, datamodule), evaluate).report
    assert report is not None
    return report


def passes(
    config: DictConfig, datamodule: L.LightningDataModule, state: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Return what rounding and profiling cost, in seconds and in forward passes over the same samples.

    Stages and plain forward passes take turns; the fastest of three each is reported.
    """
    module: L.LightningModule = instantiate(config.model)
    module.load_state_dict(state)
    module.eval()
    batches = calibration(config, datamodule)
    seconds: dict[str, list[float]] = {"forward": []}
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                module(batch[0])
        seconds["forward"].append(time.perf_counter() - start)
        pipeline = MixedPrecisionQuantization(
            4.0, candidates=instantiate(config.candidates), curvature=instantiate(config.curvature)
        ).pipeline
        pipeline.measure(module, batches)
        for stage, taken in pipeline.seconds.items():
            seconds.setdefault(stage, []).append(taken)
    fastest = {stage: min(taken) for stage, taken in seconds.items()}
    return {stage: {"seconds": taken, "forward_passes": taken / fastest["forward"]} for stage, taken in fastest.items()}


def calibration(config: DictConfig, datamodule: Any) -> list[Any]:
    """Return the batches of training images that the callback would calibrate on."""
    datamodule.setup("fit")
    return list(islice(datamodule.calibration_dataloader(), config.callbacks.mpq.calibration_batches))


def _trainer(config: DictConfig) -> L.Trainer:
    trainer: L.Trainer = instantiate(config.trainer, logger=False, enable_progress_bar=False)
    return trainer


def _demands(experiment: str, rows: Sequence[Mapping[str, Any]], cost: Mapping[str, Any]) -> list[Demand]:
    profiling = cost["profile"]["forward_passes"]
    name = "profile cost at 7 widths, in forward passes over the same samples"
    demands = [Demand(name, "<= 12", profiling, profiling <= 12)]
    rounding = cost["round"]["forward_passes"]
    name = "rounding all candidates at 7 widths, in forward passes over the same samples"
    demands.append(Demand(name, "<= 40", rounding, rounding <= 40))
    job = max(sum(row["seconds"].values()) for row in rows if "seconds" in row)
    name = "seconds from trained weights to the packed, repaired and judged model, the slowest budget"
    demands.append(Demand(name, "<= 180", job, job <= 180))
    if experiment == "fashion_mnist":
        accuracy = {(row["budget_bits"], row["model"]): 100 * row["test_accuracy"] for row in rows}
        best = max(value for (_, model), value in accuracy.items() if model == "float")
        demands.append(Demand("float test accuracy, %", ">= 92.5", best, best >= 92.5))
        if (3.0, "chosen") in accuracy:
            lost = accuracy[3.0, "float"] - accuracy[3.0, "chosen"]
            demands.append(Demand("points below float at 3 average bits", "<= 0.7", lost, lost <= 0.7))
    for row in rows:
        if row["model"] == "chosen":
            limit = row["budget_bits"]
            demands.append(
                Demand(
                    f"stored bits per weight at a budget of {limit}",
                    f"<= {limit}",
                    row["average_bits"],
                    row["average_bits"] <= limit,
                )
            )
    return demands


def _print(rows: Sequence[Mapping[str, Any]], cost: Mapping[str, Any]) -> None:
    table = Table(title="The main job, on the test split")
    for title in ("budget", "model", "bits/weight", "stored bytes", "test accuracy", "predicted loss", "measured loss"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for row in rows:
        table.add_row(
            f"{row['budget_bits']:g}",
            row["name"],
            f"{row['average_bits']:.3f}",
            f"{row['stored_bytes']:,}",
            f"{100 * row['test_accuracy']:.2f} %",
            "-" if row["predicted_loss"] is None else f"{row['predicted_loss']:.4f}",
            "-" if row["measured_loss"] is None else f"{row['measured_loss']:.4f}",
        )
    console = Console(width=120)
    console.print(table)
    for stage, taken in cost.items():
        console.print(f"{stage}: {taken['forward_passes']:.1f} forward passes over the same samples")


if __name__ == "__main__":
    main()
