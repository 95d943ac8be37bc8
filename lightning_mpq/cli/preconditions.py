"""What a configuration must hold before anything is made of it: values that are there and of their kind, a folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, get_args, get_origin, get_type_hints

import lightning as L
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ..tools.checks import check_integer, check_one_of, is_number, shown
from ..tools.kinds import alternatives

LARGEST_SEED = 2**32 - 1
"""Of numpy's generators, which Lightning seeds too."""
_NEEDED = ("model", "trainer", "callbacks", "seed", "train", "test", "output_dir", "cache_dir")
_PATH = ("a path", (str, int, float))  # a folder may be called 3
_TEXTS = {"output_dir": _PATH, "cache_dir": _PATH, "ckpt_path": _PATH, "metric": ("the name of a metric", (str,))}
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def require_values(config: DictConfig) -> None:
    """Refuse a key whose value the user must give, or that has another kind of value, before anything is made.

    Raises:
        ValueError: If there is one; the message names it.
    """
    if gone := [name for name in _NEEDED if name not in config]:
        raise ValueError(
            f"{gone[0]} is not there, and is needed: leave ~{gone[0]} out. Of the parts of a configuration, data alone "
            "may be taken out (~data), for a model that has loaders of its own."
        )
    for name, (what, kinds) in _TEXTS.items():
        value = config.get(name)
        if not (value is None and name != "output_dir") and (value == "" or type(value) not in kinds):
            null = "" if name == "output_dir" else " or null"
            raise ValueError(f"{name} must be {what}{null}, got {shown(value)}.")
    for switch in ("train", "test"):
        check_one_of(switch, config[switch], (True, False))  # Hydra takes `no` for a text, which counts as true
    check_integer("seed", config.seed)
    if not 0 <= config.seed <= LARGEST_SEED:
        raise ValueError(f"seed must be from 0 to {LARGEST_SEED}, got {shown(config.seed)}.")
    if missing := sorted(OmegaConf.missing_keys(config)):
        name = missing[0]
        raise ValueError(f"{name} has no value; give one on the command line: lightning-mpq ... {name}=VALUE")


def require_kinds(trainer: DictConfig) -> None:
    """Refuse a setting of Lightning's Trainer of a kind that it does not take.

    Lightning itself takes some of them as they are: ``max_epochs=ten`` fails while it trains, and ``detect_anomaly=no``
    is a text, which counts as true.

    Raises:
        ValueError: If there is one; the message names it.
    """
    try:
        target = get_object(trainer["_target_"])
    except Exception:  # whatever the user's own module raises; Hydra says it, and of which part, where it is made
        return
    if not (isinstance(target, type) and issubclass(target, L.Trainer)):
        return
    hints = get_type_hints(L.Trainer.__init__)
    for name, value in trainer.items():
        if name in hints and type(value) in _KINDS:
            _check_kind(f"trainer.{name}", value, hints[str(name)])


def _check_kind(name: str, value: Any, hint: Any) -> None:
    """Refuse a plain value that is of none of the plain types in a type hint.

    Raises:
        ValueError: If it is of none; says which there are.

    Example:
        >>> _check_kind("trainer.max_epochs", "ten", int | None)
        Traceback (most recent call last):
        ...
        ValueError: trainer.max_epochs must be an integer or null, got 'ten'.
    """
    kinds = alternatives(hint)
    plain = [kind for kind in _KINDS if kind in kinds]
    values = [each for kind in kinds if get_origin(kind) is Literal for each in get_args(kind)]
    number = float in plain and is_number(value)
    if not (plain or values) or number or value in values or type(value) in plain:
        return
    choices = [*(_KINDS[kind] for kind in plain), *map(repr, values), *(["null"] if type(None) in kinds else [])]
    said = ", ".join(choices[:-1]) + " or " * (len(choices) > 1) + choices[-1]
    raise ValueError(f"{name} must be {said}, got {shown(value)}.")


def require_writable(folder: Path) -> None:
    """Refuse a folder that the packed model could not be written to, before anything is trained.

    Raises:
        OSError: If it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"written")
    except OSError as error:
        raise OSError(f"Nothing can be written to {folder} ({error}); give another folder by output_dir=.") from error
