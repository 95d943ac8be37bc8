"""Configurations and jobs of the command `lightning-mpq`, on a tiny network or one of a user's own."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from lightning_mpq.cli.own_model import drop_what_is_ours
from lightning_mpq.cli.run import run

TINY = [
    "model.network.widths=[4,4,8]",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "candidates.bits=[2,4,8]",
    "callbacks.mpq.calibration_batches=1",
    "budget.average_bits=6",
]
LITTLE = ["candidates.rounding=nearest", "selection.policies=1", "selection.rounds=0"]
"""Where it does not matter how a model is quantized."""
FAST = [*LITTLE, "test=false", "callbacks.mpq.compare=false", "+trainer.limit_val_batches=1"]
OWN = ["model._target_=helpers.trainer.SmallClassifier", "data._target_=helpers.trainer.SmallData"]
QUICK = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.mpq.calibration_batches=1"]
QUICK += ["candidates.bits=[2,4,8]", "budget.average_bits=6", "cache_dir=null"]


def composed(*overrides: str) -> DictConfig:
    """Return the command's configuration."""
    with initialize_config_module("lightning_mpq.conf", version_base="1.3"):
        return compose("config", [*overrides, "output_dir=some_folder"])


def own(folder: Path, *overrides: str) -> DictConfig:
    """Return a configuration that writes into a folder."""
    config = drop_what_is_ours(composed(*OWN, *QUICK, *overrides), [*OWN, *QUICK, *overrides])
    config.output_dir = str(folder)
    return config


class Folders:
    """Runs the command's task in folders of its own, and counts fits."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache = folder / "cache"
        self.folder = folder
        self.fits = 0
        fit = L.Trainer.fit

        def counted(trainer: L.Trainer, *args: object, **kwargs: object) -> None:
            self.fits += 1
            fit(trainer, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(L.Trainer, "fit", counted)

    def run(self, name: str, *overrides: str) -> float | None:
        config = composed(*TINY, f"cache_dir={self.cache}", *overrides)
        config.output_dir = str(self.folder / name)
        return run(config)

    def report(self, name: str) -> dict:
        report = json.loads((self.folder / name / "report.json").read_text())
        report.pop("seconds")
        report["solver"].pop("seconds", None)
        report["receipt"].pop("peak memory, bytes")
        report.pop("frontier")  # other budgets are solved for a fraction of a second each, however fast that is
        return report

    def test_results(self, name: str) -> dict:
        return json.loads((self.folder / name / "test.json").read_text())
