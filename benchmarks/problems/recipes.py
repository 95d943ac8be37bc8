"""The networks that are trained on Fashion-MNIST, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import lightning as L
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from lightning_mpq.demo.classifier import Classifier
from lightning_mpq.demo.resnet import ResNet

from .mobilenet import MobileNet
from .patch_transformer import PatchTransformer


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
        small: Makes one of the same kind that a quick run takes in its place.
        classifier: Makes the LightningModule around it.
    """

    network: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    classifier: Callable[[nn.Module], Classifier]


NETWORKS = {
    "resnet20": Recipe(
        partial(ResNet, depth=20), partial(ResNet, depth=8, widths=(8, 8, 16)), partial(Classifier, warmup=0.2)
    ),
    "mobilenet": Recipe(MobileNet, partial(MobileNet, blocks=((16, 2), (24, 2))), partial(Classifier, warmup=0.2)),
    "transformer": Recipe(
        PatchTransformer,
        partial(PatchTransformer, width=16, depth=2, patch=7),
        partial(TransformerClassifier, warmup=0.2),
    ),
}


def untrained_module(name: str, seed: int, small: bool = False) -> Classifier:
    """Return the LightningModule of a network with the weights that ``seed`` draws."""
    L.seed_everything(seed, workers=True, verbose=False)
    recipe = NETWORKS[name]
    return recipe.classifier(recipe.small() if small else recipe.network())
