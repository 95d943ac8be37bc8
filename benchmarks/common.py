"""What every benchmark shares: where it ran, what was demanded, and a result file that is written whole."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning_mpq.tools.files import write_text_atomically

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "scipy", "mip", "highspy")


@dataclass(frozen=True)
class Demand:
    """A figure that was demanded beside the one that was measured.

    Attributes:
        name: What is measured, with its unit.
        demanded: The bound in words, such as ``"<= 0.1 %"``.
        measured: What came out; None if it was not measured.
        met: Whether the measured figure keeps the bound.
    """

    name: str
    demanded: str
    measured: float | str | None
    met: bool


def _first_line(command: Sequence[str]) -> str | None:
    """Return the first line that a command prints, None if it cannot run."""
    try:
        here = Path(__file__).parent
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None


def _cpu_name() -> str:
    """Return the processor's model name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return versions, processor, threads, GPU, date and commit, as plain JSON values.

    Args:
        packages: Distributions whose versions are recorded; missing ones are recorded as None.
    """
    import torch

    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "packages": versions,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _first_line(["git", "rev-parse", "HEAD"]),
    }


def write_results(
    name: str,
    *,
    settings: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    demands: Sequence[Demand] = (),
    output: Path | None = None,
    packages: Iterable[str] = PACKAGES,
) -> Path:
    """Write ``benchmarks/results/NAME.json`` with the keys environment, settings, results and demands.

    Args:
        name: Name of the benchmark, with ``-variant`` if it has several.
        settings: Seeds, sizes, limits; what was left out stands under ``skipped``.
        results: One row per measurement.
        demands: Every figure that was demanded, met or not.
        output: Another path to write to.
        packages: Distributions whose versions are recorded.

    Returns:
        The path that was written.
    """
    path = output or RESULTS / f"{name}.json"
    content = {
        "environment": environment(packages),
        "settings": dict(settings),
        "results": [dict(row) for row in results],
        "demands": [demand.__dict__ for demand in demands],
    }
    return write_text_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
