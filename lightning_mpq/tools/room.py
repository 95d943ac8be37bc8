"""How much room there is, in memory and on disks."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import torch

_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of the second and the first version of control groups: most that a container may use, and what it uses."""


def available_bytes(device: torch.device) -> int | None:
    """Return how much more memory can be used on a device; None where nobody says it.

    Of a processor that is what Linux says is available, or what is left of the container's limit if that is less.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    if device.type != "cpu":
        return None
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no number
            folder = Path("/sys/fs/cgroup")
            found.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
    return min(found, default=None)


def free_bytes(folder: Path) -> int | None:
    """Return what is free on the disk of a folder that there is, or will be; None where nobody says it."""
    for parent in (folder, *folder.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(parent).free
    return None


def gigabytes(size: int) -> str:
    """Return a number of bytes for people.

    Example:
        >>> gigabytes(1_234_000_000), gigabytes(45_600_000), gigabytes(7_000)
        ('1.23 GB', '45.6 MB', '7.00 kB')
    """
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}" if size >= 10 * unit else f"{size / unit:.2f} {name}"
    return f"{size} bytes"
