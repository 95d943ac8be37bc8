"""Train a network by its recipe, or read its weights from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
from safetensors.torch import load_file, save
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.tools.files import write_bytes_atomically

from .fashion_mnist import data_module
from .mobilenet import MobileNet
from .patch_transformer import PatchTransformer

EPOCHS = 6
CACHE = Path("outputs/networks")


class TransformerClassifier(Classifier):
    """The same classifier, trained by AdamW, which transformers need."""

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """Return AdamW whose learning rate rises to 2e-3 once and then falls to nothing."""
        optimizer: Optimizer = AdamW(self.parameters(), lr=2e-3, weight_decay=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=self.hparams["warmup"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained.

    Attributes:
        network: Makes the network.
        classifier: Makes the LightningModule around it.
    """

    network: Callable[[], nn.Module]
    classifier: Callable[[nn.Module], Classifier]


NETWORKS = {
    "resnet20": Recipe(partial(ResNet, depth=20), partial(Classifier, warmup=0.2)),
    "mobilenet": Recipe(MobileNet, partial(Classifier, warmup=0.2)),
    "transformer": Recipe(PatchTransformer, partial(TransformerClassifier, warmup=0.2)),
}


def untrained_module(name: str, seed: int) -> Classifier:
    """Return the LightningModule of a network with the weights that ``seed`` draws."""
    L.seed_everything(seed, workers=True, verbose=False)
    recipe = NETWORKS[name]
    return recipe.classifier(recipe.network())


def weights_file(name: str, seed: int, epochs: int, cache: Path = CACHE) -> Path:
    """Return where trained weights are kept; delete the file after a change of network or recipe."""
    return cache / f"{name}-seed{seed}-epochs{epochs}.safetensors"


def trained(name: str, seed: int, root: str | Path, epochs: int = EPOCHS, cache: Path = CACHE) -> Classifier:
    """Train a network on Fashion-MNIST, or read its weights from the cache.

    Args:
        name: Key of `NETWORKS`.
        seed: Seed of weights, split, order and augmentation.
        root: Folder of the four IDX files.
        epochs: Passes over the 55,000 training images.
        cache: Folder of trained weights.

    Returns:
        The trained module, on the CPU and in eval mode.
    """
    module = untrained_module(name, seed)
    path = weights_file(name, seed, epochs, cache)
    if path.exists():
        module.load_state_dict(load_file(path))
        return module.eval()
    trainer = L.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data_module(root, seed))
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    write_bytes_atomically(path, save(state))
    print(path, {key: float(value) for key, value in trainer.callback_metrics.items()}, flush=True)
    return module.cpu().eval()
