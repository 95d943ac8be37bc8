"""The command `lightning-mpq`: one job of a Hydra configuration, whose mistakes end in one sentence."""

from __future__ import annotations

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from .command_line import refuse_arguments
from .other_libraries import less_said
from .own_model import drop_what_is_ours
from .run import run

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
