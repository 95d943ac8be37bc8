"""IDX files, plain or gzipped: the format of MNIST and its kin, http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from ..tools.reading import open_ordinary

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
_AT_ONCE = 2**24


def read_idx(path: str | Path) -> Tensor:
    """Read an array of unsigned bytes.

    The file holds two zero bytes, the type of the items, the number of dimensions, each dimension as a
    big-endian 32-bit number, then the items, the last dimension running fastest.

    Args:
        path: A plain or gzipped file; its first bytes decide, not its name.

    Returns:
        uint8 tensor of the shape that the file says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, too long, of another format, or of another item type.
    """
    with open_ordinary(Path(path)) as raw:
        zipped = raw.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        raw.seek(0)
        with cast(IO[bytes], gzip.GzipFile(fileobj=raw) if zipped else raw) as file:
            try:
                return _read(file, path)
            except (EOFError, OSError, RuntimeError, zlib.error) as error:  # RuntimeError: no tensor has such a shape
                fault = "damaged or truncated gzip" if zipped else "unreadable"
                raise ValueError(f"{path} is a {fault} file ({error}). Fetch it again.") from error


def _read(file: IO[bytes], path: str | Path) -> Tensor:
    """Read an array, and no more than its header says that it has."""
    content = file.read(4)
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, not 00 00.")
    if content[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path} holds items of IDX type 0x{content[2]:02x}; only unsigned bytes, 0x08, are read.")
    start = 4 + 4 * content[3]
    sizes = file.read(start - 4)
    shape = [int.from_bytes(sizes[at : at + 4], "big") for at in range(0, start - 4, 4)]
    expected = start + prod(shape)
    items = bytearray()
    while more := file.read(min(_AT_ONCE, prod(shape) + 1 - len(items))):  # not at once: a header may say anything
        items += more
    if (found := 4 + len(sizes) + len(items)) != expected:
        fault = "truncated" if found < expected else "too long"
        beyond = " or more" if found > expected else ""
        raise ValueError(f"{path} is {fault}: its shape {shape} needs {expected} bytes, it has {found}{beyond}.")
    values = torch.frombuffer(items or bytearray(1), dtype=torch.uint8)  # which takes no empty memory
    return values[: len(items)].reshape(shape)
