"""The command `lightning-mpq`: train or load, quantize, record, from a Hydra configuration."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.utils import instantiate, to_absolute_path
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from ..export.safetensors import save
from ..tools.files import unless_impossible, write_text_atomically
from ..trainer.callback import MixedPrecisionQuantization
from .command_line import refuse_arguments
from .exporting import export, requested
from .other_libraries import less_said
from .own_model import built, data_of, drop_what_is_ours, made
from .preconditions import require_kinds, require_values, require_writable
from .training_cache import KeepTrained, TrainedWeights, training_key

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
USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    MisconfigurationException,
    InstantiationException,
    OmegaConfBaseException,
)


def main() -> None:
    """Run the command line, a job or a multirun; a mistake in it ends in one sentence and exit code 1."""
    try:
        refuse_arguments(sys.argv[1:])
    except ValueError as error:
        print(f"lightning-mpq: {error}", file=sys.stderr)
        sys.exit(1)
    _job()


@hydra.main(version_base="1.3", config_path="pkg://lightning_mpq.conf", config_name="config")
def _job(config: DictConfig) -> float | None:
    """Run one job; a mistake in the configuration ends in one sentence and exit code 1."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # where my.Net of model._target_=my.Net is looked for, after everything that is installed
    try:
        with less_said():
            return run(drop_what_is_ours(config, HydraConfig.get().overrides.task))
    except USER_ERRORS as error:
        raise CompactHydraException(f"lightning-mpq: {_sentence(error)}") from error


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
    if config.test and state is not None and _has_test_split(module, datamodule):
        float_module = built(config)
        float_module.load_state_dict(state)
        _test(trainer, datamodule, {"float": float_module, "quantized": module}, output_dir / "test.json")
    return _metric(config.metric, mixed)


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


def _say_what_was_left(mixed: MixedPrecisionQuantization) -> None:
    """Log what was not quantized, and why."""
    if mixed.report is not None:
        for layer, reason in mixed.report.left_in_float.items():
            log.info("Left in float: %s: %s", layer, reason)


def _has_test_split(module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Tell whether there is something to test, and say so if there is not."""
    if is_overridden("test_step", module) and is_overridden("test_dataloader", datamodule or module):
        return True
    log.info("Nothing is tested: the model has no test_step, or the data have no test_dataloader.")
    return False


def _test(
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


def _metric(name: str | None, mixed: MixedPrecisionQuantization) -> float | None:
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


def _sentence(error: BaseException) -> str:
    """Say what is wrong without Hydra's wrapping: the original message, and which part of the configuration."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        lines = [line.strip() for line in str(error).splitlines()]
        where = [line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")]
        return f"{where[0]}: {error.__cause__}" if where else str(error.__cause__)
    if isinstance(error, MissingMandatoryValue):
        return f"a value is missing: {error}"
    if isinstance(error, InterpolationKeyError):
        return (
            f"{error.full_key} reads what is not there ({str(error.msg).splitlines()[0]}); leave ~ in front of it out."
        )
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
