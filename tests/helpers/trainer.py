"""A small LightningModule with everything that the callback touches, its data, and a quick Trainer."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_mpq.allocation import Budget
from lightning_mpq.options import CandidateOptions, SelectionOptions
from lightning_mpq.trainer.callback import MixedPrecisionQuantization


class SmallClassifier(L.LightningModule):
    """Convolution, BatchNorm, dropout and a linear head on 1x6x6 images of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(8, 8, 3, groups=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 3),
        )
        self.accuracy = MulticlassAccuracy(3, average="micro")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val_accuracy", self.accuracy)
        self.log("val_loss", nn.functional.cross_entropy(logits, batch[1]))

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class SmallData(L.LightningDataModule):
    """Three noisy patterns; the same for every instance."""

    def __init__(self, samples: int = 96) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        patterns = torch.randn(3, 1, 6, 6, generator=generator)
        self.labels = torch.arange(samples) % 3
        self.images = patterns[self.labels] + torch.randn(samples, 1, 6, 6, generator=generator)

    def _loader(self, shuffle: bool = False) -> DataLoader:
        return DataLoader(TensorDataset(self.images, self.labels), batch_size=16, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    test_dataloader = val_dataloader


def make_trainer(folder: Path, *callbacks: L.Callback, **arguments: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "callbacks": list(callbacks),
    }
    return L.Trainer(**(settings | arguments))


def trained(folder: Path, *callbacks: L.Callback, **arguments: Any) -> tuple[L.Trainer, SmallClassifier]:
    """Fit from a fixed seed and return Trainer and module."""
    L.seed_everything(0, verbose=False)
    trainer, module = make_trainer(folder, *callbacks, **arguments), SmallClassifier()
    trainer.fit(module, SmallData())
    return trainer, module


def make_callback(bits: float = 4.5, **arguments: Any) -> MixedPrecisionQuantization:
    """Return a callback that offers five widths; where nothing is compared, it tries no other policies either."""
    settings: dict[str, Any] = {"budget": Budget(average_bits=bits), "calibration_batches": 3}
    settings["candidates"] = CandidateOptions(bits=(2, 3, 4, 5, 8))
    if not arguments.get("compare", True):
        settings["selection"] = SelectionOptions(policies=1, rounds=0)
    return MixedPrecisionQuantization(**(settings | arguments))
