"""Work in a process of its own, which may be killed or interrupted at any moment, may crash, and may hang."""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0
"""Seconds after which a process is taken to hang."""


def in_process(work: Callable[[], Any], *, after: float | None = None, send: int = signal.SIGKILL) -> tuple[str, Any]:
    """Run something in a forked process.

    Args:
        work: What is run; what it returns is sent back.
        after: Seconds from its start to a signal; None for none.
        send: The signal.

    Returns:
        "returned" and the value; "raised" and a text; "killed", "crashed" with the number of the signal, or "hangs".
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _serve(work, write)
    os.close(write)
    try:
        if after is not None:
            select.select([read], [], [], PATIENCE)
            os.read(read, 1)  # it has begun
            time.sleep(after)
            os.kill(child, send)
        answer, hangs = _answer(read)
        if hangs:
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    finally:
        os.close(read)
    if hangs:
        return "hangs", None
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return ("killed", None) if number == send and after is not None else ("crashed", number)
    state, value = pickle.loads(answer.lstrip(b".")) if answer.lstrip(b".") else ("crashed", None)
    return state, value


def _serve(work: Callable[[], Any], write: int) -> None:
    """Do the work in the child and leave, whatever happens."""
    try:
        os.write(write, b".")
        outcome: tuple[str, Any] = ("returned", work())
    except BaseException as error:
        outcome = ("raised", f"{type(error).__name__}: {str(error)[:300]}")
    try:
        with os.fdopen(write, "wb") as pipe:
            pipe.write(pickle.dumps(outcome))
    finally:
        os._exit(0)


def _answer(read: int) -> tuple[bytes, bool]:
    """Return what a process writes until it ends, and whether it does not."""
    end = time.monotonic() + PATIENCE
    parts: list[bytes] = []
    while True:
        if not select.select([read], [], [], max(0.0, end - time.monotonic()))[0]:
            return b"", True
        part = os.read(read, 2**16)
        if not part:
            return b"".join(parts), False
        parts.append(part)
