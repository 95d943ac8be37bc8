"""A lock file between processes and machines: who waits says for whom, and does not wait for ever."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .warning import warn

MOST_SECONDS = 600.0
"""After this time whoever holds a lock is taken to hang."""
SILENT_SECONDS = 5.0
"""After this time whoever waits says so."""


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold a lock file for the time of a block.

    Args:
        path: The lock file; it is made if need be, and stays.

    Yields:
        Whether it is held; False where the file system has no locks, or something else has the file's name.

    Raises:
        TimeoutError: If another process does not give it back; the message names both.
    """
    lock = _acquired(path)
    if lock is None:
        yield False
        return
    try:
        _sign(lock, path, f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}")
        yield True
    finally:
        _sign(lock, path, "")
        lock.release()


def _acquired(path: Path) -> BaseFileLock | None:
    try:
        lock = FileLock(path, mode=_permissions(path))
    except (OSError, ValueError):
        return None
    try:
        if _acquire(lock, SILENT_SECONDS):
            return lock
        warn(f"Waiting for the lock {path}, which {_holder(path)} holds; in {MOST_SECONDS:.0f} s this gives up.")
        if _acquire(lock, MOST_SECONDS - SILENT_SECONDS):
            return lock
    except (NotImplementedError, OSError):
        return None
    raise TimeoutError(
        f"The lock {path} has not come free within {MOST_SECONDS:.0f} s: {_holder(path)} holds it. Wait for that "
        "process or end it, then try again; the file itself may stay."
    )


def _acquire(lock: BaseFileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _permissions(path: Path) -> int:
    """Make the lock file if need be, as the user's umask asks, and return its permissions.

    Raises:
        OSError: If that cannot be done, or a link has its name.
        ValueError: If it is no ordinary file, or one that has another name too: locking may empty a file.
    """
    descriptor = _open(path, os.O_RDONLY | os.O_CREAT)
    try:
        found = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise ValueError(f"{path} is no lock file.")
    return stat.S_IMODE(found.st_mode)


def _sign(lock: BaseFileLock, path: Path, text: str) -> None:
    """Write into a lock file who holds it, as far as that can be done."""
    if isinstance(lock, SoftFileLock):  # which keeps something of its own there
        return
    with suppress(OSError):
        descriptor = _open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def _holder(path: Path) -> str:
    """Return who holds a lock file, as `_sign` wrote it there."""
    with suppress(OSError, ValueError):
        descriptor = _open(path, os.O_RDONLY)
        try:
            written = os.read(descriptor, 300).decode()
            return written if written.isprintable() and written else "another process"
        finally:
            os.close(descriptor)
    return "another process"


def _open(path: Path, flags: int) -> int:
    """Open a lock file, never through a link, and without waiting if it is a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
