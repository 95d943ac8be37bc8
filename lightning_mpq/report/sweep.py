"""Many jobs side by side: what each stores and what it is worth, as values, as a table, as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table

from ..tools.files import write_text_atomically
from .page.writing import write_page
from .records import Report
from .rows import ModelRow

SWEEP_FORMAT = "lightning_mpq.sweep"
SWEEP_VERSION = 1


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        name: What it is called, such as the name of its folder.
        settings: What was set in it, by name.
        page: Where its page is, relative to that of the sweep; None if it has none.
        model: The row of the model that it ended with; None if the job left no report.
        problem: Why there is none; empty if there is one.
    """

    name: str
    settings: Mapping[str, str]
    page: str | None
    model: ModelRow | None
    problem: str = ""


@dataclass(frozen=True)
class Sweep:
    """The jobs of a sweep.

    Attributes:
        jobs: In their order.
        floats: The float models that they were compared with, each once.
    """

    jobs: tuple[SweepJob, ...]
    floats: tuple[ModelRow, ...] = field(default=())

    @property
    def swept(self) -> list[str]:
        """Names of the settings that are not the same in all jobs."""
        names = list(dict.fromkeys(name for job in self.jobs for name in job.settings))
        return [name for name in names if len({job.settings.get(name) for job in self.jobs}) > 1]

    @property
    def metrics(self) -> list[str]:
        """Names of what the modules logged in validation."""
        return list(dict.fromkeys(name for job in self.jobs if job.model for name in job.model.metrics))

    @classmethod
    def read(cls, folders: Mapping[Path, Mapping[str, str]], beside: Path) -> Sweep:
        """Collect reports.

        Args:
            folders: Folder of each job, which has its report under ``report.json``, to what was set in it.
            beside: Folder that the page of the sweep will stand in.
        """
        jobs, floats = [], dict[str, ModelRow]()
        for folder, settings in folders.items():
            name = folder.relative_to(beside).as_posix() if folder.is_relative_to(beside) else folder.name
            try:
                report = Report.from_dict(json.loads((folder / "report.json").read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                why = "no report" if isinstance(error, FileNotFoundError) else f"no report: {error}"
                jobs.append(SweepJob(name, settings, None, None, why))
                continue
            page = folder / "report.html"
            link = page.relative_to(beside).as_posix() if page.is_file() and page.is_relative_to(beside) else None
            jobs.append(SweepJob(name, settings, link, report.models[-1]))
            for row in report.models:
                if row.name == "float":
                    floats.setdefault(json.dumps(asdict(row)), row)
        return cls(tuple(jobs), tuple(floats.values()))

    def table(self) -> Table:
        """Return one row a job: what was swept, bits, bytes, losses and metrics."""
        table = Table(title="Sweep")
        table.add_column("job")
        for name in self.swept:
            table.add_column(name)
        for name in ("bits/weight", "stored bytes", "predicted loss", "measured loss", *self.metrics):
            table.add_column(name, justify="right")
        for job in self.jobs:
            settings = (job.settings.get(name, "") for name in self.swept)
            if job.model is None:
                table.add_row(job.name, *settings, job.problem)
                continue
            row = job.model
            losses = (row.predicted_loss, row.measured_loss, *(row.metrics.get(name) for name in self.metrics))
            numbers = ("-" if value is None else f"{value:.4g}" for value in losses)
            table.add_row(job.name, *settings, f"{row.average_bits:.3f}", f"{row.stored_bytes:,}", *numbers)
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        own = {"swept": self.swept, "metrics": self.metrics}
        return {"format": SWEEP_FORMAT, "version": SWEEP_VERSION, **own, **asdict(self)}

    def save(self, folder: Path) -> Path:
        """Write ``sweep.json`` and the page ``sweep.html`` into a folder, and return the page."""
        write_text_atomically(folder / "sweep.json", json.dumps(self.to_dict(), indent=2) + "\n")
        return write_page(folder / "sweep.html", self.to_dict(), "sweep")
