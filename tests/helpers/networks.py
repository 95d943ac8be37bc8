"""The few small networks that most tests need, and batches for them; what is special about another stands in its test.

Every network is made from the same seed, and every batch is the same at each call.
"""

from collections import OrderedDict

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

WIDTH = 6
"""Features of a vector."""
CLASSES = 3


def mlp(*widths: int, activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Return linear layers with an activation between any two: ``mlp(6, 8, 3)`` has the layers "0" and "2"."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def with_batchnorm() -> nn.Sequential:
    """Return ``first``, ``norm``, ``tanh``, ``last`` for vectors, in eval mode."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(WIDTH, 8), "norm": nn.BatchNorm1d(8), "tanh": nn.Tanh(), "last": nn.Linear(8, CLASSES)}
    return nn.Sequential(OrderedDict(layers)).eval()


def convnet(dropout: bool = False) -> nn.Sequential:
    """Return ``conv``, ``norm``, ``relu``, ``drop`` if wanted, ``flatten``, ``head`` for images of 2x6x6, to train."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {"conv": nn.Conv2d(2, 4, 3), "norm": nn.BatchNorm2d(4), "relu": nn.ReLU()}
    layers |= {"drop": nn.Dropout(0.5)} if dropout else {}
    layers |= {"flatten": nn.Flatten(), "head": nn.Linear(4 * 4 * 4, CLASSES)}
    return nn.Sequential(OrderedDict(layers))


def vectors(*sizes: int, width: int = WIDTH, seed: int = 1, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Return a batch of normal vectors for each size."""
    generator = Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator).to(dtype) for size in sizes]


def images(*sizes: int, seed: int = 1) -> list[Tensor]:
    """Return a batch of normal images, 2x6x6, for each size."""
    generator = Generator().manual_seed(seed)
    return [torch.randn(size, 2, 6, 6, generator=generator) for size in sizes]


def with_labels(batches: list[Tensor], classes: int = CLASSES, seed: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Return batches with a class for each sample."""
    generator = Generator().manual_seed(seed)
    return [(inputs, torch.randint(classes, inputs.shape[:1], generator=generator)) for inputs in batches]


def labelled(*sizes: int, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    """Return `vectors` with a class for each."""
    return with_labels(vectors(*sizes, width=width, dtype=dtype))


def class_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of a batch; what many tests pass as ``loss_fn``."""
    return cross_entropy(model(batch[0]), batch[1])


class Counted(nn.Module):
    """Counts the forward passes of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.passes = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.passes += 1
        return self.network(*inputs)
