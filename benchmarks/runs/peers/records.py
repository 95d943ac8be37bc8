"""What a peer is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import cross_entropy

from .grid import Layer, QuantizedLayer, stored_bytes


class CannotError(Exception):
    """A peer cannot quantize this network, or not to this budget; the message says why."""


class Task(NamedTuple):
    """What is to be quantized.

    Attributes:
        network: Its name; `adapters.networks` builds it.
        arguments: What it is built with.
        layers: Name to size of every layer whose weight is to be quantized; the others stay in float.
        average_bits: Bits a weight that codes may take.
        budget_bytes: Bytes that these layers may take: the above, and a scale a row.
        state: Float weights and buffers, by name.
        inputs: Calibration samples in order, [n, ...].
        targets: Classes [n], of language models [n, length], or what outputs are to be [n, ...].
        batch: Samples in a batch.
        variance: Of outputs that are numbers around ``targets``; None for classes.
        seed: Seeds whatever is random.
        options: What this adapter is asked beside that.
    """

    network: str
    arguments: Mapping[str, Any]
    layers: Mapping[str, Layer]
    average_bits: float
    budget_bytes: int
    state: Mapping[str, Tensor]
    inputs: Tensor
    targets: Tensor
    batch: int
    variance: float | None
    seed: int
    options: Mapping[str, Any]

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """Return inputs and targets in batches."""
        return list(zip(self.inputs.split(self.batch), self.targets.split(self.batch), strict=True))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the negative log-likelihood of targets, a mean over samples."""
        if self.variance is None:
            return cross_entropy(outputs, targets)
        return (outputs - targets).square().sum() / (2 * self.variance * len(outputs))


class Answer(NamedTuple):
    """What a peer has made of it.

    Attributes:
        layers: Name to quantized layer.
        others: State dict key to tensor of biases and statistics that were changed.
        stored_bytes: Bytes that the layers take, by the peer's adapter.
        seconds: Wall time.
        processor_seconds: Processor time.
        peak_bytes: The most that its process held.
        versions: Distribution to version.
        note: What one should know of it.
    """

    layers: Mapping[str, QuantizedLayer]
    others: Mapping[str, Tensor]
    stored_bytes: int
    seconds: float
    processor_seconds: float
    peak_bytes: int
    versions: Mapping[str, str]
    note: str = ""


def total_bytes(task: Task, layers: Mapping[str, QuantizedLayer]) -> int:
    """Return the bytes of all quantized layers."""
    return sum(stored_bytes(task.layers[name], layer) for name, layer in layers.items())
