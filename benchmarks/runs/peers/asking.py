"""Hand a task to a peer's process and take its answer, if that is one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ...tools.apart import RefusedError, python_of, run_process
from .checking import checked
from .exchange import ANSWER, TENSORS, read_answer, write_task
from .records import Answer, CannotError, Task

Start = Callable[[Path], None]
"""Leaves an answer in the folder that holds the task, or raises `RefusedError`."""


@dataclass(frozen=True)
class Peer:
    """A quantizer.

    Attributes:
        name: As the tables call it.
        adapter: Module in `adapters`; empty for one that can do no network here.
        environment: Environment that it runs in; None for the one that the runner runs in.
        options: What the adapter is asked beside the task.
        zero_points: Whether it stores a zero point with each scale whatever it is asked, and gets room for them.
        cannot: Network to the reason why it is not even asked.
    """

    name: str
    adapter: str = ""
    environment: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    zero_points: bool = False
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The interpreter that the adapter runs in."""
        return Path(sys.executable) if self.environment is None else python_of(self.environment)

    def start(self, seconds: float) -> Start:
        """Return what runs the adapter's process on a folder.

        Args:
            seconds: How long it may take.
        """
        words = [str(self.python), "-m", f"benchmarks.runs.peers.adapters.{self.adapter}"]
        return lambda folder: run_process([*words, str(folder)], seconds)


def answered(start: Start, task: Task, folder: Path) -> Answer:
    """Return a peer's answer to a task, checked.

    Args:
        start: Runs the peer.
        task: What it is asked.
        folder: Where task and answer are written.

    Raises:
        CannotError: If the peer says that it cannot.
        RefusedError: If it fails, or its answer is none; see `checked`.
    """
    for name in (ANSWER, TENSORS):
        (folder / name).unlink(missing_ok=True)  # one of an earlier try
    write_task(folder, task)
    start(folder)
    try:
        found = read_answer(folder)
    except CannotError:
        raise
    except FileNotFoundError:
        missing = next(name for name in (ANSWER, TENSORS) if not (folder / name).exists())
        raise RefusedError(f"It has written no {missing}.") from None
    except (ValueError, SafetensorError, LookupError, TypeError, AttributeError, OSError) as error:
        raise RefusedError(f"Its answer cannot be read: {type(error).__name__}: {error}") from error
    return checked(task, found)
