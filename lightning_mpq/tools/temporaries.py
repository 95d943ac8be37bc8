"""Temporary files and folders beside what they will become; those of killed processes go when the next one is made.

Each is locked for as long as its process lives, on POSIX by ``flock``, elsewhere by being open. Whatever has our ending
and can be locked belongs to a process that is gone. Where the file system has no locks, it stays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE
from typing import BinaryIO
from uuid import uuid4

try:
    import fcntl
except ImportError:  # Windows, which renames and removes no file that is open
    fcntl = None  # type: ignore[assignment]

_ENDING = ".lightning_mpq.tmp"
_FOLDER = ".d"


@contextmanager
def temporary_file(parent: Path) -> Iterator[BinaryIO]:
    """Open a new file, whose permissions are those that the user's umask asks for; it is removed at the end.

    Args:
        parent: The folder to make it in; it exists. What killed processes left in it is removed.
    """
    _remove_leftovers(parent)
    file = _new_file(parent)
    try:
        yield file
    finally:
        file.close()
        Path(file.name).unlink(missing_ok=True)  # it has another name by now if it was put in place


@contextmanager
def temporary_folder(parent: Path) -> Iterator[tuple[Path, int]]:
    """Make a new folder, for writers with temporary files of their own; it is removed at the end.

    Args:
        parent: The folder to make it in; it exists. What killed processes left in it is removed.

    Yields:
        The folder, and the permissions that the user's umask asks for in a file.
    """
    with temporary_file(parent) as owner:
        folder = Path(owner.name + _FOLDER)
        try:
            folder.mkdir()
            yield folder, S_IMODE(os.fstat(owner.fileno()).st_mode)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(file: BinaryIO, path: Path) -> None:
    """Flush a temporary file to disk and give it its name; a file that has that name is replaced."""
    file.flush()
    os.fsync(file.fileno())
    if fcntl is None:
        file.close()
    os.replace(file.name, path)


def _new_file(parent: Path) -> BinaryIO:
    """Open a file and lock it; another one if it was taken for a leftover between the two steps."""
    while True:
        file = (parent / f".{uuid4().hex}{_ENDING}").open("xb")  # tempfile's would be for their owner only
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        if fcntl is None or os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _remove_leftovers(parent: Path) -> None:
    """Remove files whose process is gone, and their folders."""
    for path in parent.glob(f".*{_ENDING}"):
        with suppress(OSError):  # its process lives, another one was faster, or another user owns it
            if fcntl is None:
                path.unlink()
                shutil.rmtree(f"{path}{_FOLDER}", ignore_errors=True)
                continue
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(f"{path}{_FOLDER}", ignore_errors=True)
                path.unlink()  # last, so that a folder is never without it
            finally:
                os.close(descriptor)
