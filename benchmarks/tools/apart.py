"""Processes in environments of their own, for what cannot be installed beside the rest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".peers"
"""Where ``make peers`` puts an environment for each file in ``benchmarks/runs/peers/requirements``."""


class RefusedError(ValueError):
    """The answer of another process that is not what it says, or none at all."""


def python_of(environment: str) -> Path:
    """Return the interpreter of an environment, which need not be there."""
    return ENVIRONMENTS / environment / "bin" / "python"


def run_process(words: list[str], seconds: float) -> None:
    """Run a command in the repository's root, as many threads as this process is told to use.

    Raises:
        RefusedError: If it ends with an error or not in time.
    """
    own = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
    try:
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, **own}, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise RefusedError(f"No answer within {seconds:,.0f} seconds.") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "without a word").splitlines()[-1]
        raise RefusedError(f"It ended with status {done.returncode}: {last}")
