"""Memory that was freed, given back to the system: the C library keeps it, in a heap for each thread."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back() -> None:
    """Let the C library return what it keeps of freed memory; nothing where it is not glibc.

    It takes some milliseconds.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
