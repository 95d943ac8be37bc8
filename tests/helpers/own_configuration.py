"""The command's configuration with a model and data of a user's own."""

from pathlib import Path

from omegaconf import DictConfig
from test_conf import composed

from lightning_mpq.cli.own_model import drop_what_is_ours

OWN = ["model._target_=helpers.trainer.SmallClassifier", "data._target_=helpers.trainer.SmallData"]
QUICK = ["trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.mpq.calibration_batches=1"]
QUICK += ["candidates.bits=[2,4,8]", "budget.average_bits=6", "cache_dir=null"]


def own(folder: Path, *overrides: str) -> DictConfig:
    """Return a configuration that writes into a folder."""
    config = drop_what_is_ours(composed(*OWN, *QUICK, *overrides), [*OWN, *QUICK, *overrides])
    config.output_dir = str(folder)
    return config
