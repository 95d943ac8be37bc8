"""Images for a first try: random pixels on a grey that is the label, in the files of Fashion-MNIST."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from lightning_mpq.demo.fashion_mnist import FashionMNIST
from lightning_mpq.tools.files import write_bytes_atomically

TRAINING = FashionMNIST.VALIDATION + 640
TEST = 256


def made_up_images(folder: Path) -> Path:
    """Write the four IDX files unless they are there; return their folder.

    Args:
        folder: Where they go.
    """
    random = np.random.default_rng(0)
    for names, count in ((FashionMNIST.TRAINING_FILES, TRAINING), (FashionMNIST.TEST_FILES, TEST)):
        labels = random.integers(0, 10, count)
        images = random.integers(0, 60, (count, 28, 28)) + 19 * labels[:, None, None]
        for name, values in zip(names, (images, labels), strict=True):
            if not (folder / name).exists():
                write_bytes_atomically(folder / name, _idx(values))
    return folder


def _idx(values: np.ndarray) -> bytes:
    """Return an array of bytes in the IDX format: type and number of dimensions, sizes, content."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()
