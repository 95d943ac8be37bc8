"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text_atomically(path: Path, text: str) -> Path:
    """Write a text file under a temporary name, flush it to disk, and put it in place in one step.

    Whoever reads ``path`` finds the old file or the new one, never a part.
    """
    return write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name beside ``path``, flush it to disk, and put it in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
