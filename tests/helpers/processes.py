"""Code that runs in processes of its own, as a user's would: where the tests' helpers can be imported."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SCRIPTS = TESTS / "helpers" / "scripts"
HANGS = 1800
"""Seconds after which a process is taken to hang. It is killed then; nothing is said about its speed."""


def environment(**more: str) -> dict[str, str]:
    """Return variables with which a new process finds the package and the helpers, and computes on one thread."""
    path = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | more


def run_python(code: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run code in a new process and return what it printed."""
    done = try_python(code, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def try_python(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a new process, which may fail."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=HANGS)


def run_two_processes(script: str, *arguments: object) -> None:
    """Run one of the scripts that start a second process by themselves, as a Trainer under DDP does."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=HANGS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the second process, if it is still there
    assert process.returncode == 0, output
