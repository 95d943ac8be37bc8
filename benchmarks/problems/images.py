"""Which images of Fashion-MNIST are for what: training images calibrate and choose, test images only report."""

from __future__ import annotations

import torch
from torch import Generator

from lightning_mpq.demo.fashion_mnist import FashionMNIST
from lightning_mpq.demo.images import ImageDataset

from ..tools.accuracy import Images

CALIBRATION = 1024
_BATCH = 128


def calibration(data: FashionMNIST, seed: int, count: int = CALIBRATION) -> Images:
    """Return batches of training images as they are, without augmentation, drawn by ``seed``."""
    data.setup("fit")
    return _batches(data, "train", seed, count)


def held_out(data: FashionMNIST, seed: int = 0, count: int = 4096) -> Images:
    """Return batches of the images that are held out of the training file: neither trained nor calibrated on."""
    data.setup("fit")
    return _batches(data, "val", seed, count)


def test_split(data: FashionMNIST) -> Images:
    """Return the test images in batches; for the record only."""
    data.setup("test")
    return list(data.test_dataloader())


def _batches(data: FashionMNIST, split: str, seed: int, count: int) -> Images:
    """Return ``count`` images of a split, drawn without replacement and not augmented, in batches."""
    loader = data.calibration_dataloader() if split == "train" else data.val_dataloader()
    images = loader.dataset
    assert isinstance(images, ImageDataset)
    if count > len(images):
        raise ValueError(f"The split {split!r} has {len(images)} images, and {count} were asked for.")
    order = torch.randperm(len(images), generator=Generator().manual_seed(seed))[:count]
    return [images.__getitems__(part.tolist()) for part in order.split(_BATCH)]
