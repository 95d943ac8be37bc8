"""Files from outside: pipes, devices and giants are refused before anything is read, and broken JSON in one way."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST_BYTES = 2**27
"""What a text file of ours may have; what is saved beside a model of a hundred thousand layers has less."""
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def require_ordinary(path: Path) -> os.stat_result:
    """Refuse what only looks like a file, for readers that open it by themselves; links are followed.

    Returns:
        What the system says of the file.

    Raises:
        OSError: If there is nothing, or a link in a loop.
        ValueError: If it is a pipe, a device or a folder.
    """
    found = path.stat()
    _require_ordinary(path, found)
    return found


def open_ordinary(path: Path) -> BinaryIO:
    """Open a file for reading without waiting for whoever might write to it.

    Raises:
        OSError: If there is nothing, or it cannot be read.
        ValueError: If it is a pipe, a device or a folder.
    """
    require_ordinary(path)  # a device may do something when it is opened
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _require_ordinary(path, os.fstat(descriptor))  # nor has it become one since
    except ValueError:
        file.close()
        raise
    return file


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a file that is expected to be small.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        OSError: If there is nothing, or it cannot be read.
        ValueError: If it is a pipe, a device or a folder, or larger.
    """
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise ValueError(f"{path} has {max(size, len(content)):,} bytes; expected at most {most:,}. Give another file.")
    return content


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a file that is expected to be small, in UTF-8.

    Raises:
        OSError: If there is nothing, or it cannot be read.
        ValueError: If it is a pipe, a device or a folder, or larger, or no text.
    """
    return read_bytes(path, most).decode("utf-8")


def parse_json(text: str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: If it is no JSON, or nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _require_ordinary(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something special")
        raise ValueError(f"{path} is {kind}, and an ordinary file is expected. Give a file, or a link to one.")
