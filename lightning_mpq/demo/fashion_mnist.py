"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels, in ten classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from .idx import read_idx
from .images import Augmentation, ImageDataModule, random_crop, random_flip


class FashionMNIST(ImageDataModule):
    """Fashion-MNIST from its four IDX files: 55,000 images to train, 5,000 to validate, 10,000 to test.

    Source: H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST", arXiv:1708.07747.

    Args:
        root: Folder with the four files, gzipped or plain.
        batch_size: Images per training batch.
        seed: Seed of the split, of the order of training batches and of augmentation.
        flip: Whether training images are mirrored left to right at random.
        shift: Largest random shift of training images, in pixels; 0 for none.
        num_workers: Processes that load batches.
    """

    VALIDATION = 5_000
    TRAINING_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
    TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 128,
        seed: int = 0,
        flip: bool = True,
        shift: int = 0,
        num_workers: int = 0,
    ) -> None:
        augmentations: list[Augmentation] = [random_flip] if flip else []
        augmentations += [partial(random_crop, padding=shift)] if shift else []
        # Mean and standard deviation of the training pixels.
        super().__init__(batch_size, seed, num_workers, mean=72.94, std=90.02, augmentations=augmentations)
        self.root = Path(root)

    def setup(self, stage: str) -> None:
        """Read the files and split the training images.

        Raises:
            FileNotFoundError: If a file is missing; the message says where to get it.
            ValueError: If a file is damaged, or images and labels do not match.
        """
        if self._splits:
            return
        images, labels = self._read(*self.TRAINING_FILES)
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
        chosen = {"train": order[self.VALIDATION :], "val": order[: self.VALIDATION]}
        splits = {name: (images[where], labels[where]) for name, where in chosen.items()}
        self.use_splits(**splits, test=self._read(*self.TEST_FILES))

    def _read(self, image_name: str, label_name: str) -> tuple[Tensor, Tensor]:
        """Return images, [samples, 28, 28] uint8, and labels, [samples] int64."""
        images = read_idx(self._find(image_name))
        labels = read_idx(self._find(label_name)).long()
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{self.root / image_name} has the shape {list(images.shape)} and {label_name} {list(labels.shape)}; "
                "expected [samples, height, width] and [samples]."
            )
        return images, labels

    def _find(self, name: str) -> Path:
        """Return the path of a file, gzipped or plain."""
        for candidate in (self.root / f"{name}.gz", self.root / name):
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(
            f"Fashion-MNIST: {name}.gz is missing in data.root = {str(self.root)!r}. Debian's package "
            "dataset-fashion-mnist has all four files (under share/datasets/fashion-mnist of the system prefix), and "
            "so has the publisher: https://github.com/zalandoresearch/fashion-mnist"
        )
