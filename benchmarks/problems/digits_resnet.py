"""A ResNet-20 on the digits of scikit-learn: trained in seconds where Fashion-MNIST takes minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_mpq.demo.digits import Digits
from lightning_mpq.demo.resnet import ResNet

_RATE = 3e-3


def resnet20(epochs: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return the network trained for some epochs, images that it was trained on, and others."""
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
    unseen = [images for loader in (data.val_dataloader(), data.test_dataloader()) for images, _ in loader]
    return model.eval(), torch.cat([images for images, _ in data.calibration_dataloader()]), torch.cat(unseen)
