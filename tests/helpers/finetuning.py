"""Callbacks and comparisons that the tests of fine-tuning share."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers.trainer import SmallClassifier, SmallData, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_mpq.finetune import fake_quantized_layers
from lightning_mpq.modules import packed_layers
from lightning_mpq.options import CandidateOptions, SelectionOptions
from lightning_mpq.trainer.callback import MixedPrecisionQuantization

LAYERS = {"network.0", "network.4", "network.8"}
FEW = CandidateOptions(bits=(2, 3, 4, 8), rounding="nearest")


def finetuning(bits: float = 4.5, **arguments: Any) -> MixedPrecisionQuantization:
    """Return a callback that fine-tunes, after a decision that takes little."""
    settings: dict[str, Any] = {
        "finetune_epochs": 2,
        "calibration_batches": 2,
        "compare": False,
        "candidates": FEW,
        "selection": SelectionOptions(policies=1, rounds=0, resamples=0),
    }
    return MixedPrecisionQuantization(bits, **(settings | arguments))


def kind_of(module: L.LightningModule) -> str:
    return "packed" if packed_layers(module) else "fake" if fake_quantized_layers(module) else "float"


class Recorder(L.Callback):
    """Notes what kind the layers are of at each hook, by epoch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append(("start", trainer.current_epoch, kind_of(pl_module)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append(("end", trainer.current_epoch, kind_of(pl_module)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seen.append(("over", trainer.current_epoch, kind_of(pl_module)))

    def epochs(self) -> list[str]:
        return [kind for hook, _, kind in self.seen if hook == "end"]


class Killed(RuntimeError):
    """What a test raises where a process would be killed."""


class Kill(L.Callback):
    """Raises at one hook of one epoch."""

    def __init__(self, hook: str, epoch: int | None = None) -> None:
        setattr(self, hook, self._raise)
        self._epoch = epoch

    def _raise(self, trainer: L.Trainer, *args: Any) -> None:
        if self._epoch in (None, trainer.current_epoch):
            raise Killed


def fit(
    folder: Path,
    *callbacks: L.Callback,
    module: L.LightningModule | None = None,
    data: L.LightningDataModule | None = None,
    resume: Path | None = None,
    **arguments: Any,
) -> tuple[L.Trainer, L.LightningModule]:
    """Fit from a fixed seed, with a checkpoint of each epoch in ``folder``."""
    L.seed_everything(0, verbose=False)
    checkpoint = ModelCheckpoint(folder, save_last=True, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    trainer = make_trainer(folder, *callbacks, checkpoint, enable_checkpointing=True, **arguments)
    module = SmallClassifier() if module is None else module
    trainer.fit(module, data or SmallData(), ckpt_path=resume)
    return trainer, module


class TwoOptimizers(SmallClassifier):
    """Two optimizers and schedulers, stepped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        for scheduler in self.lr_schedulers() or []:
            scheduler.step()

    def configure_optimizers(self):
        body = torch.optim.SGD(self.network[:6].parameters(), lr=0.05, momentum=0.9)
        head = torch.optim.AdamW(self.network[6:].parameters(), lr=0.01)
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5) for optimizer in (body, head)]
        return [body, head], schedulers
