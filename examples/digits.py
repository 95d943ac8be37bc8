"""A LightningModule and its data, as a user may have them: scikit-learn's handwritten digits, 8x8 pixels."""

from __future__ import annotations

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class DigitsNet(L.LightningModule):
    """Three convolutions with BatchNorm and a linear layer."""

    def __init__(self, channels: int = 16, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            *(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()),
            *(nn.Conv2d(channels, 2 * channels, 3, stride=2, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()),
            *(nn.Conv2d(2 * channels, 2 * channels, 3, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(2 * channels, 10)),
        )
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Map images, [batch, 1, 8, 8], to logits, [batch, 10]."""
        return self.network(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy."""
        images, labels = batch
        return cross_entropy(self(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_accuracy", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class DigitsData(L.LightningDataModule):
    """1,497 images to train on, 300 to validate on."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        images, labels = load_digits(return_X_y=True)
        samples = TensorDataset(torch.tensor(images / 16).float().view(-1, 1, 8, 8), torch.tensor(labels))
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
        self.training = torch.utils.data.Subset(samples, order[300:])
        self.validation = torch.utils.data.Subset(samples, order[:300])

    def train_dataloader(self) -> DataLoader:
        """Return training batches."""
        return DataLoader(self.training, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return validation batches."""
        return DataLoader(self.validation, 300)

    def calibration_dataloader(self) -> DataLoader:
        """Return what the quantization is calibrated on: training images, not augmented, always the same."""
        return DataLoader(self.training, self.batch_size)
