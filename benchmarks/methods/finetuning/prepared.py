"""A network that is ready to be fine-tuned, whoever has prepared it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer


class Stored(NamedTuple):
    """Bits per weight of the quantized layers.

    Attributes:
        grid_bits: Codes at their width, and scales.
        held_bits: What the converted layers hold in memory.
    """

    grid_bits: float
    held_bits: float


class Prepared(NamedTuple):
    """A network that is ready to be trained.

    Attributes:
        scales: Learned scales, for an optimizer.
        convert: Ends the training: the network then computes with codes.
    """

    scales: Sequence[nn.Parameter]
    convert: Callable[[], Stored]

    @classmethod
    def in_float(cls, network: nn.Module) -> Prepared:
        """Leave a network as it is."""
        return cls([], lambda: Stored(32.0, 32.0))


def plain_linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that are nn.Linear and nothing more: not the projection inside of attention."""
    return {name: layer for name, layer in network.named_modules() if type(layer) is nn.Linear}


def step(network: nn.Module, batch: tuple[Tensor, Tensor], optimizer: Optimizer) -> None:
    """Take one training step on the cross entropy."""
    images, labels = batch
    optimizer.zero_grad()
    cross_entropy(network(images), labels).backward()
    optimizer.step()
