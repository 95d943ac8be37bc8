"""Train or load, quantize, record: what one job of a configuration does."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import lightning as L
from hydra.utils import instantiate, to_absolute_path
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf

from ..export.safetensors import save
from ..trainer.callback import MixedPrecisionQuantization
from .cache_entry import cache_entry
from .exporting import export, requested
from .own_model import built, data_of, made
from .preconditions import require_kinds, require_values, require_writable
from .results import has_test_split, metric_of, test_on_split
from .training_cache import KeepTrained

log = logging.getLogger(__name__)


def run(config: DictConfig) -> float | None:
    """Train or load, quantize, save, export, and measure once on the test split.

    Args:
        config: What `conf/config.yaml` composes to, ``output_dir`` being resolvable.

    Returns:
        The validation metric of the packed model that ``config.metric`` names; None if there is no comparison.

    Raises:
        ValueError: If a value is of another kind than it must be, the callbacks do not hold exactly one
            MixedPrecisionQuantization, ``quantize_at`` is within the training, or there is no such metric.
        TypeError: If model, data, trainer or a callback make something else.
    """
    require_values(config)
    config = config.copy()
    if config.cache_dir is not None:
        config.cache_dir = to_absolute_path(str(config.cache_dir))  # a folder may be called 3
    config.output_dir = to_absolute_path(str(config.output_dir))
    require_kinds(config.trainer)
    output_dir = Path(config.output_dir)
    require_writable(output_dir / "model")
    L.seed_everything(config.seed, workers=True)
    datamodule = data_of(config)
    module = built(config)
    callbacks = _callbacks(config)
    mixed = _the_quantization(callbacks)
    exports = requested(config.get("export"), mixed.target, output_dir)
    trains = bool(config.train) and config.ckpt_path is None
    _refuse_epoch(mixed.finetuning.fit.quantize_at, trains)
    kept = KeepTrained(cache_entry(config, module, datamodule) if trains else None)
    callbacks.insert(callbacks.index(mixed), kept)
    finetunes = mixed.finetuning.wanted
    if finetunes:
        callbacks.remove(mixed)  # a fit of its own follows, so that it begins alike where weights are found
    trainer = made("trainer", instantiate(config.trainer, callbacks=callbacks), L.Trainer)

    state = kept.entry.load() if kept.entry is not None else None
    if kept.entry is not None and state is not None:
        log.info("Trained weights found: %s", kept.entry.path)
        module.load_state_dict(state)
    elif not trains:
        source = "as model makes it" if config.ckpt_path is None else f"of {config.ckpt_path}"
        log.info("Nothing is trained: the model %s is quantized.", source)
        state = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
    if state is None:
        trainer.fit(module, datamodule=datamodule)
        state = kept.state
    elif not finetunes:
        mixed.quantize_trained(trainer, module, datamodule)
    if finetunes and state is not None:
        mixed, module = _finetune(config, datamodule, state)
    _say_what_was_left(mixed)
    log.info("Packed model: %s", _saved(module, output_dir / "model"))
    for own in exports:
        most_bytes = mixed.job.pipeline.settings.budget.file_bytes if own is mixed.target else None
        log.info("Exported: %s", export(own, module, trainer, datamodule, output_dir, most_bytes))
    if config.test and state is not None and has_test_split(module, datamodule):
        float_module = built(config)
        float_module.load_state_dict(state)
        test_on_split(trainer, datamodule, {"float": float_module, "quantized": module}, output_dir / "test.json")
    return metric_of(config.metric, mixed)


def _finetune(
    config: DictConfig, datamodule: L.LightningDataModule | None, state: Mapping[str, Any]
) -> tuple[MixedPrecisionQuantization, L.LightningModule]:
    """Quantize and fine-tune trained weights in a fit of its own, which logs into ``finetuning``.

    Returns:
        The callback and the packed module.
    """
    L.seed_everything(config.seed, workers=True)
    module = built(config)
    module.load_state_dict(state)
    callbacks = _callbacks(config)
    mixed = _the_quantization(callbacks)
    mixed.finetuning.fit.quantize_at = 0
    config = config.copy()
    if OmegaConf.select(config, "trainer.logger.name") is not None:
        config.trainer.logger.name = "finetuning"
    trainer = made("trainer", instantiate(config.trainer, callbacks=callbacks), L.Trainer)
    trainer.fit(module, datamodule=datamodule)
    return mixed, module


def _callbacks(config: DictConfig) -> list[Callback]:
    return [
        made(f"callbacks.{name}", instantiate(callback), Callback)
        for name, callback in config.callbacks.items()
        if callback is not None
    ]


def _saved(module: L.LightningModule, folder: Path) -> Path:
    """Save a packed model, if need be where temporary files are: the training must not be lost for a full disk."""
    try:
        return save(module, folder)
    except OSError as error:
        elsewhere = Path(mkdtemp(prefix="lightning-mpq-"))
        log.error("The packed model cannot be written to %s (%s), but to %s.", folder, error, elsewhere)
        return save(module, elsewhere)


def _the_quantization(callbacks: list[Callback]) -> MixedPrecisionQuantization:
    """Return the one callback that quantizes."""
    found = [callback for callback in callbacks if isinstance(callback, MixedPrecisionQuantization)]
    if len(found) != 1:
        raise ValueError(f"callbacks must hold one MixedPrecisionQuantization, got {len(found)}. Use callbacks=mpq.")
    return found[0]


def _refuse_epoch(quantize_at: int | None, trains: bool) -> None:
    """Refuse an epoch within a fit for the beginning of fine-tuning, which has a fit of its own here."""
    if quantize_at is not None and (trains or quantize_at > 0):
        raise ValueError(
            f"callbacks.mpq.quantize_at={quantize_at} is for a single fit, and lightning-mpq fine-tunes in one of its "
            "own, so that a sweep trains once: give trainer.max_epochs and, with finetune=qat, finetune.epochs instead."
        )


def _say_what_was_left(mixed: MixedPrecisionQuantization) -> None:
    """Log what was not quantized, and why."""
    if mixed.report is not None:
        for layer, reason in mixed.report.left_in_float.items():
            log.info("Left in float: %s: %s", layer, reason)
