"""A project of a user: network and data that know nothing of lightning_mpq. ``python spirals.py`` trains best.ckpt."""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    """Three linear layers."""

    def __init__(self, width: int = 64, learning_rate: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(
            *(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
        )

    def forward(self, points: Tensor) -> Tensor:
        """Map points, [batch, 2], to logits, [batch, 3]."""
        return self.layers(points)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the cross entropy."""
        points, labels = batch
        return cross_entropy(self(points), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        points, labels = batch
        self.log("val_acc", (self(points).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class Spirals(L.LightningDataModule):
    """Points of three arms of a spiral."""

    def __init__(self, samples: int = 1500, batch_size: int = 100) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(samples) % 3
        radius = torch.rand(samples, generator=generator)
        angle = 4 * radius + labels * 2.094 + 0.15 * torch.randn(samples, generator=generator)
        points = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        self.points = torch.utils.data.random_split(TensorDataset(points, labels), [0.8, 0.2], generator)

    def train_dataloader(self) -> DataLoader:
        """Return training batches."""
        return DataLoader(self.points[0], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Return validation batches."""
        return DataLoader(self.points[1], 300)


if __name__ == "__main__":
    L.seed_everything(0)
    trainer = L.Trainer(max_epochs=30, logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.fit(Net(), Spirals())
    trainer.save_checkpoint("best.ckpt")
