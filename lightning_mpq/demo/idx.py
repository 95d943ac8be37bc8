"""IDX files, plain or gzipped: the format of MNIST and its kin, http://yann.lecun.com/exdb/mnist/."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import torch
from torch import Tensor

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


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
    content = Path(path).read_bytes()
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged or truncated gzip file ({error}). Fetch it again.") from error
    if len(content) < 4 or content[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it begins with {content[:4].hex(' ') or 'nothing'}, not 00 00.")
    if content[2] != UNSIGNED_BYTE:
        raise ValueError(f"{path} holds items of IDX type 0x{content[2]:02x}; only unsigned bytes, 0x08, are read.")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    expected = start + prod(shape)
    if len(content) != expected:
        fault = "truncated" if len(content) < expected else "too long"
        raise ValueError(f"{path} is {fault}: its shape {shape} needs {expected} bytes, it has {len(content)}.")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].reshape(shape)
