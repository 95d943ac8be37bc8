"""A ResNet-20 on the digits of scikit-learn: trained in seconds where Fashion-MNIST takes minutes."""

from __future__ import annotations

import copy
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.resnet import ResNet

from ..tools.accuracy import Images

_RATE = 3e-3


@cache
def labelled(epochs: int) -> tuple[nn.Module, Images, Images]:
    """Return the network trained for some epochs, batches of 64 that it was trained on, and the others."""
    torch.manual_seed(0)
    data = Digits()
    data.setup("fit")
    data.setup("test")
    model = ResNet(depth=20)
    optimizer = torch.optim.Adam(model.parameters(), _RATE)
    for _ in range(epochs):
        for images, labels in data.train_dataloader():
            optimizer.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimizer.step()
    unseen = [*data.val_dataloader(), *data.test_dataloader()]
    return model.eval(), [(images, labels) for images, labels in data.calibration_dataloader()], unseen


def resnet20(epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network, a new one each time, images that it was trained on, and others."""
    model, training, unseen = labelled(epochs)
    return copy.deepcopy(model), torch.cat([images for images, _ in training]), torch.cat([x for x, _ in unseen])
