"""One page for all jobs of a Hydra multirun."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..report.sweep import Sweep
from ..tools.files import unless_impossible

log = logging.getLogger(__name__)
_WIDTH = 160


class SweepPage(Callback):
    """Writes ``sweep.html`` and ``sweep.json`` at the end of a multirun, and prints the table.

    Hydra ends a multirun without a word to its callbacks if a job has failed, so that the page is written then too.

    A job is a folder under the sweep's that has Hydra's ``.hydra/overrides.yaml``; its report is found by the name
    ``report.json``. In another Hydra application::

        hydra: {callbacks: {sweep_page: {_target_: lightning_mpq.cli.sweep.SweepPage}}}
    """

    def __init__(self) -> None:
        self._failed = False

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Collect what the jobs left by now, if one of them has failed."""
        self._failed |= job_return.status == JobStatus.FAILED
        if self._failed and config.hydra.mode == RunMode.MULTIRUN:
            folder = Path(config.hydra.sweep.dir).absolute()
            with unless_impossible("The page of the sweep in", folder, "It is not needed."):
                log.warning("A job has failed; the page of the others: %s", _collected(folder).save(folder))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collect what the jobs left."""
        folder = Path(config.hydra.sweep.dir).absolute()
        sweep = _collected(folder)
        if not sweep.jobs:
            log.warning("No job of the multirun left its overrides in %s, so there is no page of it.", folder)
            return
        console = Console()
        console = console if console.is_terminal else Console(width=_WIDTH)  # a log file has no width of its own
        console.print(sweep.table())
        with unless_impossible("The page of the sweep in", folder, "Its table was printed."):
            log.info("Page of the sweep: %s", sweep.save(folder))


def _collected(folder: Path) -> Sweep:
    """Return the jobs whose folders are in that of a multirun."""
    jobs = {path.parents[1]: overrides(path) for path in folder.rglob(".hydra/overrides.yaml")}
    return Sweep.read(dict(sorted(jobs.items(), key=lambda item: _natural(item[0]))), folder)


def overrides(path: Path) -> dict[str, str]:
    """Return what was set in a job, by name.

    Args:
        path: Hydra's file, a list of overrides.
    """
    lines = [str(line) for line in OmegaConf.to_object(OmegaConf.load(path))]  # type: ignore[union-attr]
    parsed = OverridesParser.create().parse_overrides(lines)
    return {str(each.key_or_group): "" if each.is_delete() else each.get_value_string() for each in parsed}


def _natural(path: Path) -> tuple[Any, ...]:
    """Order 10 after 9."""
    return (path.parent, not path.name.isdigit(), int(path.name) if path.name.isdigit() else 0, path.name)
