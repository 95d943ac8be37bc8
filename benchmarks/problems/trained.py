"""Networks trained on Fashion-MNIST, or read from the cache, with the images that they are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from safetensors.torch import load_file, save
from torch import nn

from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.fashion_mnist import FashionMNIST
from lightning_mpq.tools.files import write_bytes_atomically

from ..tools.accuracy import Images
from . import images
from .recipes import untrained_module

EPOCHS = 6
CACHE = Path("outputs/networks")


@dataclass(frozen=True)
class TrainedNetworks:
    """Networks of `recipes`, trained on the images of one folder.

    Training takes minutes, so weights are kept and shared by all benchmarks; delete a file after a change of network
    or recipe.

    Attributes:
        root: Folder of the four IDX files.
        epochs: Passes over the 55,000 training images.
        small: Whether small networks stand in for the real ones.
        cache: Folder of trained weights; None keeps none.
    """

    root: Path
    epochs: int = EPOCHS
    small: bool = False
    cache: Path | None = CACHE

    def data(self, seed: int) -> FashionMNIST:
        """Return the data of one training: 55,000 images to train on, 5,000 held out, 10,000 to report on."""
        return FashionMNIST(self.root, seed=seed)

    def calibration(self, seed: int, count: int = images.CALIBRATION, split: int | None = None) -> Images:
        """Return training images, drawn by ``seed`` from those of the training with seed ``split`` (the same)."""
        return images.calibration(self.data(seed if split is None else split), seed, count)

    def held_out(self, seed: int, count: int = 4096) -> Images:
        """Return images that the training with this seed has not seen."""
        return images.held_out(self.data(seed), seed, count)

    def test(self) -> Images:
        """Return the test images."""
        return images.test_split(self.data(0))

    def network(self, name: str, seed: int) -> nn.Module:
        """Return a trained network alone; see `module`."""
        return self.module(name, seed).network

    def module(self, name: str, seed: int) -> Classifier:
        """Train a network, or read its weights from the cache.

        Args:
            name: Key of `recipes.NETWORKS`.
            seed: Seed of weights, split, order and augmentation.

        Returns:
            The trained module, on the CPU and in eval mode.
        """
        module = untrained_module(name, seed, self.small)
        path = None if self.cache is None else weights_file(name, seed, self.epochs, self.cache)
        if path is not None and path.exists():
            module.load_state_dict(load_file(path))
            return module.eval()
        trainer = L.Trainer(
            max_epochs=self.epochs,
            limit_val_batches=1 if self.small else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        module.to(memory_format=torch.channels_last)  # depthwise convolutions then take two thirds of the time
        trainer.fit(module, self.data(seed))
        module.to(memory_format=torch.contiguous_format)
        if path is not None:
            state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
            write_bytes_atomically(path, save(state))
            print(path, {key: float(value) for key, value in trainer.callback_metrics.items()}, flush=True)
        return module.cpu().eval()


def weights_file(name: str, seed: int, epochs: int, cache: Path = CACHE) -> Path:
    """Return where trained weights are kept."""
    return cache / f"{name}-seed{seed}-epochs{epochs}.safetensors"
