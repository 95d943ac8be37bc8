"""What is refused of the command line before Hydra reads it, which ends in a traceback there or does harm."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Transformer
from hydra.errors import HydraException

_GIVEN_AGAIN = {"-m", "--multirun", "hydra.mode=MULTIRUN"}


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse a group that is given anything but the name of a file, and one folder for all jobs of a multirun.

    Args:
        arguments: The command line; what Hydra itself refuses in a sentence is left to it.

    Raises:
        ValueError: If there is one; the message says what to give instead.
    """
    several = any(argument in _GIVEN_AGAIN for argument in arguments)
    for override in filter(None, map(_parsed, arguments)):
        key = override.key_or_group
        if key in (choices := _choices()) or "/" in key:
            for value in _values(override):
                if not isinstance(value, (str, list, dict)) and not (override.is_delete() and value is None):
                    raise ValueError(_no_choice(override.input_line or key, key, choices.get(key, ())))
        plain = not override.is_sweep_override() and "${" not in str(override.value())
        if several and key == "output_dir" and plain and not override.is_delete():
            raise ValueError(
                f"{override.input_line} would be the folder of every job of the multirun, each of which replaces what "
                f"the one before has written. Give hydra.sweep.dir={override.value()}: each job has a folder there."
            )


def _parsed(argument: str) -> Override | None:
    if "=" not in argument and not argument.startswith("~"):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None  # a flag, or what Hydra says better


def _values(override: Override) -> Iterator[Any]:
    if override.is_discrete_sweep() and not isinstance(override.value(), Glob):  # which names files
        yield from override.sweep_iterator(Transformer.identity)
    elif not override.is_sweep_override():
        yield override.value()


def _choices() -> dict[str, list[str]]:
    """Return the groups of this package's configuration, and what each may be."""
    folders = [entry for entry in files("lightning_mpq.conf").iterdir() if entry.is_dir()]
    names = {folder.name: [file.name for file in folder.iterdir()] for folder in folders}
    return {
        group: sorted(name.removesuffix(".yaml") for name in own if name.endswith(".yaml"))
        for group, own in names.items()
        if any(name.endswith(".yaml") for name in own)
    }


def _no_choice(given: str, group: str, choices: Sequence[str]) -> str:
    said = f"{given}: {group} must be the name of a file of the configuration"
    if choices:
        said += f": {', '.join(choices)}. Its values have longer names, {group}.NAME=VALUE"
    return said + (". ~data leaves it out, for a model that has loaders of its own." if group == "data" else ".")
