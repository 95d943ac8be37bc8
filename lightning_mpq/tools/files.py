"""Files that are written whole or not at all, and what tells that they still are."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .reading import open_ordinary
from .temporaries import put_in_place, temporary_file
from .warning import warn

_ZIP = b"PK\x03\x04"


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a text file under a temporary name, flush it to disk, and put it in place in one step.

    Whoever reads ``path`` finds the old file or the new one, never a part.
    """
    return write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name beside ``path``, flush it to disk, and put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary_file(path.parent) as file:
        file.write(content)
        put_in_place(file, path)
    return path


@contextmanager
def unless_impossible(what: str, path: Path, instead: str) -> Iterator[None]:
    """Go on with a warning if the files of a block cannot be written: those of a cache or a report, which may be lost.

    Args:
        what: What is written, to begin the warning with.
        path: Where.
        instead: What happens now.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     with unless_impossible("The cache", Path("x"), "Never mind."):
        ...         raise PermissionError("read-only")
        >>> str(caught[0].message)
        'The cache x cannot be used: read-only. Never mind.'
    """
    try:
        yield
    except OSError as error:
        warn(f"{what} {path} cannot be used: {error}. {instead}")


def damage(path: Path) -> str | None:
    """Return a phrase on what has changed in a file since ``torch.save`` wrote it; None if nothing is known to have.

    PyTorch writes checksums and never looks at them. Files in the format before 1.6, and those that
    ``torch.serialization.set_crc32_options(False)`` wrote, have none.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no ordinary file.
    """
    with open_ordinary(path) as file:
        if file.read(len(_ZIP)) != _ZIP:
            return None
        try:
            with zipfile.ZipFile(file) as archive:
                checked = any(part.CRC for part in archive.infolist())
                part = archive.testzip() if checked else None
        except Exception as error:  # which one, depends on the byte that is wrong
            return str(error) or repr(error)
    return None if part is None else f"{part} has other bytes than were written"
