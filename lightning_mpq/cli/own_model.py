"""A model and data of the user's own on the command line, and weights that are trained already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object, instantiate, to_absolute_path
from omegaconf import DictConfig, open_dict

from ..tools.checks import shown
from ..trainer.checkpoints.checkpoint import policy_in_checkpoint

Made = TypeVar("Made")


def drop_what_is_ours(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a configuration in which a model or data of the user's own get no arguments that were meant for ours.

    Where ``model._target_=my.Net`` stands on the command line, what is left of ``model`` is what stands there too.

    Args:
        config: As composed.
        overrides: The command line, as ``["model._target_=my.Net", "+model.width=3"]``.
    """
    config = config.copy()
    given = [str(each.key_or_group) for each in OverridesParser.create().parse_overrides(list(overrides))]
    for part in ("model", "data"):
        if f"{part}._target_" not in given:
            continue
        kept = {key.split(".")[1] for key in given if key.startswith(f"{part}.")}
        with open_dict(config):
            for name in [name for name in config[part] if name not in kept]:
                config[part].pop(name)
    return config


def built(config: DictConfig) -> L.LightningModule:
    """Return the model: as ``model`` makes it, with the weights of ``ckpt_path`` if there is one.

    A LightningModule that saved its hyperparameters is made from them; what stands under ``model`` goes before.

    Args:
        config: Of a job.

    Raises:
        ValueError: If the checkpoint cannot be found, is no checkpoint of Lightning, or holds a packed model.
        TypeError: If ``model`` is no LightningModule.
    """
    if config.get("ckpt_path") is None:
        return made("model", instantiate(config.model), L.LightningModule)
    path = Path(to_absolute_path(str(config.ckpt_path)))
    if not path.is_file():
        raise ValueError(f"ckpt_path={config.ckpt_path} is no file; give a checkpoint that Lightning wrote.")
    try:
        checkpoint = torch.load(path, map_location="cpu")
    except Exception as error:  # which one, depends on the bytes
        raise ValueError(
            f"ckpt_path={config.ckpt_path} is no checkpoint, or holds more than weights and plain values, "
            "which loading may run: if you trust the file, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in the environment."
        ) from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"ckpt_path={config.ckpt_path} holds no state_dict; give a checkpoint that Lightning wrote.")
    if policy_in_checkpoint(checkpoint) is not None:
        raise ValueError(
            f"ckpt_path={config.ckpt_path} holds a model that is packed already. Give a checkpoint of the float model."
        )
    return _with_weights(config, path, checkpoint)


def _with_weights(config: DictConfig, path: Path, checkpoint: dict[str, Any]) -> L.LightningModule:
    """Return the model with a checkpoint's weights."""
    target = get_object(config.model["_target_"])
    saved = "hyper_parameters" in checkpoint
    if saved and isinstance(target, type) and issubclass(target, L.LightningModule):
        arguments = instantiate(config.model, _target_="builtins.dict", _recursive_=True)
        return target.load_from_checkpoint(path, map_location="cpu", **arguments)
    module = made("model", instantiate(config.model), L.LightningModule)
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise ValueError(
            f"The weights of ckpt_path={config.ckpt_path} do not fit {config.model['_target_']} as model makes "
            f"it: {error}"
        ) from error
    return module


def made(part: str, thing: Any, kind: type[Made]) -> Made:
    """Return what a part of the configuration makes, if it is of the kind that is needed there.

    Raises:
        TypeError: If it is not.

    Example:
        >>> made("data", [1], L.LightningDataModule)
        Traceback (most recent call last):
        ...
        TypeError: data must make a LightningDataModule, got [1].
    """
    if not isinstance(thing, kind):
        raise TypeError(f"{part} must make a {kind.__name__}, got {shown(thing)}.")
    return thing


def data_of(config: DictConfig) -> L.LightningDataModule | None:
    """Return the datamodule; None with ``~data``, where the module has loaders of its own.

    Raises:
        TypeError: If ``data`` is no LightningDataModule.
    """
    if config.get("data") is None:
        return None
    return made("data", instantiate(config.data), L.LightningDataModule)
