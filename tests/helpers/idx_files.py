"""Writes IDX files, independently of the reader."""

import gzip
import struct
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_fashion_mnist(
    root: Path, training: int = 5_200, test: int = 60, zipped: bool = True
) -> dict[str, np.ndarray]:
    """Write four files of random images in the layout of Fashion-MNIST; return the arrays by file name."""
    random = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", training), ("t10k", test)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]  # learnable
        arrays |= {f"{prefix}-images-idx3-ubyte": images, f"{prefix}-labels-idx1-ubyte": labels}
    for name, array in arrays.items():
        content = idx_bytes(array)
        if zipped:
            (root / f"{name}.gz").write_bytes(gzip.compress(content, 1))
        else:
            (root / name).write_bytes(content)
    return arrays
