"""Training data that can be gone through once."""

from collections.abc import Iterator
from typing import Any

import lightning as L
from helpers.trainer import SmallData
from torch.utils.data import DataLoader, IterableDataset


class Once(IterableDataset):
    """Yields samples from where it stopped, and in the end nothing more."""

    def __init__(self, data: SmallData) -> None:
        self.source = iter(list(zip(data.images, data.labels, strict=True)))

    def __iter__(self) -> Iterator[Any]:
        return self.source


class StreamedData(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.stream = DataLoader(Once(SmallData()), batch_size=16)

    def train_dataloader(self) -> DataLoader:
        return self.stream

    def val_dataloader(self) -> DataLoader:
        return SmallData().val_dataloader()
