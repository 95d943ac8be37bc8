"""A small network, its module with everything that profiling must leave alone, and batches for both."""

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lightning_mpq.network.likelihood import Categorical

QUICK = {"bits": [2, 4], "likelihood": Categorical()}


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(inplace=True), nn.Linear(8, 3)
        )
        self.accuracy = MulticlassAccuracy(3)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        outputs = self(batch[0])
        loss = cross_entropy(outputs, batch[1])
        self.accuracy(outputs, batch[1])
        self.log("accuracy", self.accuracy)
        self.log_dict({"loss": loss})
        return {"loss": loss}


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def batches(count=3, size=8):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]
