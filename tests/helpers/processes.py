"""Code that runs in processes of its own, as a user's would: where the tests' helpers can be imported.

Most of them begin as copies of one process that has imported the package and done nothing else, for importing it takes
longer than what is tested.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
SCRIPTS = TESTS / "helpers" / "scripts"
HANGS = 1800
"""Seconds after which a process is taken to hang. It is killed then; nothing is said about its speed."""
READY = multiprocessing.get_context("forkserver")
"""Starts processes that have imported the package."""
READY.set_forkserver_preload(["lightning_mpq", "hydra"])


class Finished(NamedTuple):
    """What a process left, as that of `subprocess.CompletedProcess`."""

    returncode: int | None
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """Return variables with which a new process finds the package and the helpers, and computes on one thread."""
    path = os.pathsep.join([str(ROOT), str(TESTS), os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | more


def run_python(code: str, *arguments: object, cwd: Path | None = None) -> str:
    """Run code in a process that has imported the package, and return what it printed."""
    done = _finished(_run_code, (code,), arguments, cwd, environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def try_module(name: str, *arguments: object, cwd: Path | None = None, **variables: str) -> Finished:
    """Run a module as ``python -m`` does, which may fail, in a process that has imported the package."""
    return _finished(_run_module, (name,), arguments, cwd, environment(**variables))


def try_new_python(code: str, *arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code, which may fail, in a process that has imported nothing."""
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


def _finished(
    work: Callable[..., None],
    given: tuple[Any, ...],
    arguments: tuple[object, ...],
    cwd: Path | None,
    variables: dict[str, str],
) -> Finished:
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / name for name in ("stdout", "stderr")]
        place = Path.cwd() if cwd is None else cwd
        process = READY.Process(target=_begin, args=(work, given, [*map(str, arguments)], place, variables, said))
        process.start()
        process.join(HANGS)
        if process.is_alive():
            process.kill()
            process.join()
        return Finished(process.exitcode, *(path.read_text() if path.exists() else "" for path in said))


def _begin(
    work: Callable[..., None],
    given: tuple[Any, ...],
    arguments: list[str],
    cwd: Path,
    variables: dict[str, str],
    said: list[Path],
) -> None:
    import torch

    for number, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    torch.set_num_threads(1)
    sys.argv = ["", *arguments]
    sys.path.insert(0, "")
    work(*given)


def _run_code(code: str) -> None:
    sys.modules["__main__"] = main = ModuleType("__main__")
    exec(compile(code, "<code>", "exec"), main.__dict__)


def _run_module(name: str) -> None:
    runpy.run_module(name, run_name="__main__", alter_sys=True)
