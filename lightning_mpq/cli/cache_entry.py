"""Which part of a configuration decides the trained weights, and so where they are kept."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from ..trainer.callback import MixedPrecisionQuantization
from .training_cache import TrainedWeights, training_key

log = logging.getLogger(__name__)

# What Trainer and callbacks take that leaves trained weights as they are.
WITHOUT_INFLUENCE = {
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "logger",
}


def cache_entry(
    config: DictConfig, module: L.LightningModule, datamodule: L.LightningDataModule | None
) -> TrainedWeights | None:
    """Return where the trained weights of this configuration are, or will be, kept; None for nowhere.

    Args:
        config: The resolvable configuration.
        module: As instantiated right after seeding and after the datamodule; its weights are part of the key.
        datamodule: The data.
    """
    if config.cache_dir is None or datamodule is None:
        return None
    # Where a run writes is different for each run and decides nothing.
    plain = OmegaConf.to_container(OmegaConf.merge(config, {"output_dir": "."}), resolve=True)
    assert isinstance(plain, dict)
    decisive = {
        "seed": plain["seed"],
        "model": plain["model"],
        "data": plain["data"],
        "trainer": {key: value for key, value in plain["trainer"].items() if key not in WITHOUT_INFLUENCE},
        "callbacks": {name: value for name, value in plain["callbacks"].items() if not _is_quantization(value)},
    }
    key = training_key(decisive, module, datamodule)
    if key is None:
        log.info("No trained weights are kept: the datamodule has no fingerprint(), or code has no file.")
        return None
    return TrainedWeights(Path(config.cache_dir) / "trained", key)


def _is_quantization(callback: Any) -> bool:
    target = callback.get("_target_", "") if isinstance(callback, dict) else ""
    return str(target).endswith(f".{MixedPrecisionQuantization.__name__}")
