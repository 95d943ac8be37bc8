"""Processes that stay alive through a module's tests, joined by gloo on this machine, and are killed if they hang."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from .processes import READY

START_SECONDS = 240
"""Importing torch on a busy machine takes its time."""


class RankError(AssertionError):
    """A rank failed; the text is its traceback."""


class ProcessPool:
    """Runs functions on every rank of a process group; the functions must be importable by name."""

    def __init__(self, ranks: int = 2) -> None:
        self.ranks = ranks
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float = 240) -> list[Any]:
        """Return what ``function(*arguments)`` returned on each rank.

        Raises:
            RankError: If a rank raised; the pool is then started afresh, as after a TimeoutError.
            TimeoutError: If they are not all done in time: one waits for another that will not come.
        """
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send((function, arguments))
            outcomes = self._receive(seconds)
        except BaseException:
            self.kill()
            raise
        if failures := [f"rank {rank}:\n{value}" for rank, (ok, value) in enumerate(outcomes) if not ok]:
            self.kill()
            raise RankError("\n".join(failures))
        return [value for _, value in outcomes]

    def kill(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.kill()
            process.join(10)
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        meeting = str(Path(tempfile.mkdtemp()) / "store")
        for rank in range(self.ranks):
            ours, theirs = READY.Pipe()
            process = READY.Process(target=_serve, args=(rank, self.ranks, meeting, theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        try:
            self._receive(START_SECONDS)
        except BaseException:
            self.kill()
            raise

    def _receive(self, seconds: float) -> list[tuple[bool, Any]]:
        end = time.monotonic() + seconds
        outcomes = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(max(0.0, end - time.monotonic())):
                raise TimeoutError(f"Rank {rank} did not answer within {seconds} s.")
            outcomes.append(pipe.recv())
        return outcomes


def _serve(rank: int, ranks: int, meeting: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=timedelta(seconds=300)
    )
    pipe.send((True, None))
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:  # the tests are over
            return
        try:
            outcome = (True, function(*arguments))
        except Exception:
            outcome = (False, traceback.format_exc())
        pipe.send(outcome)
