"""What this process holds in memory, where Linux says it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any


def transient_bytes(call: Callable[[], Any]) -> int | None:
    """Return how far one call raises this process's memory above what it held before; None where nobody says it."""
    before = resident_bytes()
    if before is None:
        return None
    restart_peak()
    call()
    return max(0, peak_bytes() - before)


def resident_bytes() -> int | None:
    """Return what this process holds once all that was freed is given back; None where nobody says it."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is allocated next
        return status_bytes("VmRSS")
    except (OSError, AttributeError):
        return None


def restart_peak() -> None:
    """Let the high-water mark start anew, at what this process holds now.

    Raises:
        OSError: Where there is none.
    """
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Return the most that this process has held (ru_maxrss would count its parent's as well).

    Raises:
        OSError: Where nobody says it.
    """
    return status_bytes("VmHWM")


def status_bytes(field: str) -> int:
    """Return a field of this process's status, such as ``RssAnon``, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
