"""Images held in memory as one tensor, and a DataModule that serves them in batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import lightning as L
import torch
from torch import Generator, Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset

Augmentation = Callable[[Tensor, Generator], Tensor]
T = TypeVar("T")


def random_crop(images: Tensor, generator: Generator, padding: int = 2) -> Tensor:
    """Shift each image by up to ``padding`` pixels in both directions; what comes in at the border is zero.

    Args:
        images: [batch, channels, height, width].
        generator: Source of the shifts.
        padding: Largest shift, in pixels.
    """
    count, _, height, width = images.shape
    top, left = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, :, None]  # [batch, height, 1]
    columns = (left + torch.arange(width))[:, None, :]  # [batch, 1, width]
    padded = pad(images, [padding] * 4)
    return padded[torch.arange(count)[:, None, None], :, rows, columns].movedim(-1, 1).contiguous()


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image, [batch, channels, height, width], left to right with probability one half."""
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(flipped, images.flip(-1), images)


def as_it_is(batch: T) -> T:
    """Collate nothing: `ImageDataset` returns whole batches."""
    return batch


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory; a batch is gathered, scaled and augmented as one tensor.

    Args:
        images: [samples, height, width], uint8.
        labels: [samples], int64.
        mean: Pixel value that becomes 0.
        std: Pixel values per unit of the result.
        augmentations: Applied to training batches in turn, before scaling.
        seed: Seed of the augmentations.

    Example:
        >>> data = ImageDataset(torch.full((3, 2, 2), 8, dtype=torch.uint8), torch.tensor([5, 6, 7]), mean=4, std=2)
        >>> images, labels = data.__getitems__([0, 2])
        >>> images.shape, images.unique(), labels
        (torch.Size([2, 1, 2, 2]), tensor([2.]), tensor([5, 7]))
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: float,
        std: float,
        augmentations: Sequence[Augmentation] = (),
        seed: int = 0,
    ) -> None:
        self.images, self.labels = images, labels
        self.mean, self.std = mean, std
        self.augmentations = augmentations
        self.generator = Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image, [1, height, width] float32, and its label, [] int64."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return a batch of images, [batch, 1, height, width] float32, and labels, [batch] int64.

        DataLoader calls this, where it exists, once per batch in place of `__getitem__` once per sample.
        """
        chosen = torch.as_tensor(indices)
        images = self.images[chosen, None]
        for augment in self.augmentations:
            images = augment(images, self.generator)
        return (images.float() - self.mean) / self.std, self.labels[chosen]


class ImageDataModule(L.LightningDataModule):
    """Serves three splits of grey images; a subclass fills them in `setup` with `use_splits`.

    Args:
        batch_size: Images per batch.
        seed: Seed of the split, of the order of training batches and of augmentation.
        num_workers: Processes that load batches; gathering from memory needs none.
        mean: Pixel value that becomes 0.
        std: Pixel values per unit of the result.
        augmentations: Applied to training batches only.
    """

    def __init__(
        self,
        batch_size: int,
        seed: int,
        num_workers: int,
        mean: float,
        std: float,
        augmentations: Sequence[Augmentation] = (),
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.mean, self.std = mean, std
        self.augmentations = augmentations
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    def use_splits(self, **splits: tuple[Tensor, Tensor]) -> None:
        """Take ``train``, ``val`` and ``test``, each as (images [samples, height, width] uint8, labels [samples])."""
        self._splits = splits

    def fingerprint(self) -> str:
        """Return a hash of every pixel and label of every split, for caches."""
        self.setup("fit")
        digest = hashlib.sha256()
        for name, tensors in self._splits.items():
            digest.update(name.encode())
            for tensor in tensors:
                digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def train_dataloader(self) -> DataLoader:
        """Return augmented training batches in random order."""
        return self._loader("train", self.batch_size, augmentations=self.augmentations, shuffle=True)

    def calibration_dataloader(self) -> DataLoader:
        """Return training batches as validation would see them: not augmented, always in the same order."""
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Return validation batches."""
        return self._loader("val", 4 * self.batch_size)

    def test_dataloader(self) -> DataLoader:
        """Return test batches."""
        return self._loader("test", 4 * self.batch_size)

    def _loader(
        self, split: str, batch_size: int, augmentations: Sequence[Augmentation] = (), shuffle: bool = False
    ) -> DataLoader:
        images, labels = self._splits[split]
        dataset = ImageDataset(images, labels, self.mean, self.std, augmentations, self.seed)
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            generator=Generator().manual_seed(self.seed),
            num_workers=self.num_workers,
            collate_fn=as_it_is,
        )
