"""The 1,797 handwritten digits of 8x8 pixels that come inside scikit-learn."""

from __future__ import annotations

import torch
from torch import Generator

from .images import ImageDataModule


class Digits(ImageDataModule):
    """Handwritten digits, pixel values 0..16, no download: about 1,200 to train, 300 to validate, 297 to test.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.

    Args:
        batch_size: Images per training batch.
        seed: Seed of the split and of the order of training batches.
        num_workers: Processes that load batches.
    """

    VALIDATION = 300
    TEST = 297

    def __init__(self, batch_size: int = 64, seed: int = 0, num_workers: int = 0) -> None:
        super().__init__(batch_size, seed, num_workers, mean=4.9, std=6.0)

    def setup(self, stage: str) -> None:
        """Read the images and split them.

        Raises:
            ModuleNotFoundError: If scikit-learn is missing; the message names the extra that installs it.
        """
        if self._splits:
            return
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "The digits come with scikit-learn, which is not installed. "
                "Install it with: pip install 'lightning_mpq[demo]'",
                name=error.name,
            ) from error
        found = load_digits()
        images = torch.from_numpy(found.images).to(torch.uint8)
        labels = torch.from_numpy(found.target).to(torch.int64)
        order = torch.randperm(len(images), generator=Generator().manual_seed(self.seed))
        sizes = [len(images) - self.VALIDATION - self.TEST, self.VALIDATION, self.TEST]
        splits = zip(("train", "val", "test"), order.split(sizes), strict=True)
        self.use_splits(**{name: (images[chosen], labels[chosen]) for name, chosen in splits})
