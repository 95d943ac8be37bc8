"""Where a benchmark ran."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "lightning", "torchmetrics", "numpy", "scipy", "mip", "highspy")


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


def _cpu_name() -> str:
    """Return the processor's model name where the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _first_line(command: Sequence[str]) -> str | None:
    """Return the first line that a command prints, None if it cannot run."""
    try:
        here = Path(__file__).parent
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=here)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else None
