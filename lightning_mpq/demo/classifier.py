"""Image classifier as a LightningModule: cross entropy, accuracy, SGD with one learning-rate cycle."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]


class Classifier(L.LightningModule):
    """Trains a network on (images, labels) batches and measures it with torchmetrics.

    Args:
        network: Maps images, [batch, channels, height, width], to logits, [batch, num_classes].
        num_classes: Number of classes.
        learning_rate: Peak of the one-cycle schedule (Smith and Topin, arXiv:1708.07120).
        momentum: Nesterov momentum.
        weight_decay: L2 penalty of every parameter, per step.
        label_smoothing: Probability mass of the training target that is spread over all classes.
        warmup: Share of the steps in which the learning rate rises.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        warmup: float = 0.3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.val_loss = MeanMetric()
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_loss = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean cross entropy of a batch, in nats."""
        images, labels = batch
        loss = cross_entropy(self(images), labels, label_smoothing=self.hparams["label_smoothing"])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update validation loss and accuracy."""
        self._measure("val", batch, self.val_loss, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Update test loss and accuracy."""
        self._measure("test", batch, self.test_loss, self.test_accuracy)

    def _measure(self, stage: str, batch: Batch, mean_loss: MeanMetric, accuracy: MulticlassAccuracy) -> None:
        """Log the loss without label smoothing and the accuracy, both over the whole split."""
        images, labels = batch
        logits = self(images)
        mean_loss.update(cross_entropy(logits, labels), weight=len(labels))
        accuracy.update(logits, labels)
        self.log(f"{stage}_loss", mean_loss, prog_bar=stage == "val")
        self.log(f"{stage}_accuracy", accuracy, prog_bar=stage == "val")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return SGD whose learning rate rises to its peak once and then falls to nothing."""
        settings = self.hparams
        optimizer = SGD(
            self.parameters(),
            lr=settings["learning_rate"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            nesterov=settings["momentum"] > 0,
        )
        schedule = OneCycleLR(
            optimizer,
            max_lr=settings["learning_rate"],
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=settings["warmup"],
            cycle_momentum=False,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
