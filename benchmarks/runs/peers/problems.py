"""The networks that peers are compared on, as tasks, and what becomes of them on unseen samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from lightning_mpq import Categorical, Gaussian

from ...problems.digits_resnet import resnet20
from ...problems.subjects import Subject, subject
from ...problems.trained import TrainedNetworks
from ...problems.unseen import Unseen
from ...tools.quality import of_classes
from .grid import SCALE_BYTES, Layer
from .records import Answer, Task

TRAINED = ("resnet20", "mobilenet")
TRANSFORMERS = ("minilm", "smollm2")
"""Networks that read texts."""
PRETRAINED = ("minilm", "efficientnet_lite0", "smollm2")
NETWORKS = ("digits", *TRAINED, *PRETRAINED)
DIGITS_EPOCHS = 12
"""That ResNet-20 is trained for on digits, as in the benchmark of noise."""
SEEDS = 3
"""Draws of calibration samples that pretrained networks have samples for."""


@dataclass(frozen=True)
class Problem:
    """A float network with calibration samples and unseen ones.

    Attributes:
        name: Its name in `adapters.networks`.
        subject: Model, batches, likelihood, quality.
        targets: Of the calibration samples: their classes, or what outputs are to be.
        arguments: What `adapters.networks` builds the model with.
    """

    name: str
    subject: Subject
    targets: Tensor
    arguments: Mapping[str, Any]

    def task(self, average_bits: float, seed: int, options: Mapping[str, Any], zero_points: bool = False) -> Task:
        """Return what a peer is asked: codes of so many bits on average, and a scale a row of 16 bits.

        Args:
            average_bits: Bits a weight.
            seed: Seeds whatever is random.
            options: What the adapter is asked beside that.
            zero_points: Whether another 16 bits a row are granted, to a peer that cannot do without zero points.
        """
        net = self.subject.model
        layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
        tables = {layer.weight for layer in net.modules() if isinstance(layer, nn.Embedding)}
        layers = {name: layer for name, layer in layers.items() if layer.weight not in tables}  # nobody quantizes heads
        sizes = {name: Layer(len(layer.weight), layer.weight[0].numel()) for name, layer in layers.items()}
        codes = sum(ceil(size.rows * size.columns / 8) for size in sizes.values())  # as bytes of one bit each
        scales = (1 + zero_points) * SCALE_BYTES * sum(size.rows for size in sizes.values())
        likelihood = self.subject.likelihood
        return Task(
            self.name,
            self.arguments,
            sizes,
            average_bits,
            int(average_bits * codes) + scales,
            net.state_dict(),
            torch.cat(self.subject.calibration),
            self.targets,
            len(self.subject.calibration[0]),
            likelihood.variance if isinstance(likelihood, Gaussian) else None,
            seed,
            options,
        )

    @cached_property
    def unseen(self) -> Unseen:
        """What measures the model; it keeps what the float model says."""
        return Unseen(self.subject)

    def quality(self, answer: Answer) -> dict[str, float]:
        """Return what an answer's weights, biases and statistics do on the unseen samples; the model stays as it is."""
        net, unseen = self.subject.model, self.unseen  # made while the model is the float one
        before = {key: value.clone() for key, value in net.state_dict().items()}
        weights = {f"{name}.weight": layer.weight for name, layer in answer.layers.items()}
        try:
            net.load_state_dict({**before, **answer.others, **weights})
            return unseen()
        finally:
            net.load_state_dict(before)


def pretrained(name: str, texts: Path | None, samples: int, seed: int) -> Problem:
    """Return a pretrained network; calibration samples of the seeds are slices that share none."""
    loaded = subject(name, texts, SEEDS * samples)
    net, batches, unseen = loaded.model, loaded.calibration, loaded.unseen
    arguments: dict[str, Any] = {}
    if name == "minilm":
        net = net.get_submodule("encoder")
        batches, unseen = ([batch["input_ids"] for batch in part] for part in (batches, unseen))
        arguments = cast(Any, net.get_submodule("encoder")).config.to_diff_dict()
    elif name == "smollm2":
        arguments = cast(Any, net.get_submodule("model")).config.to_diff_dict()
        del arguments["quantization_config"]  # of the file that it was read from
    count = len(batches) // SEEDS
    own = loaded._replace(model=net, calibration=batches[seed * count : (seed + 1) * count], unseen=unseen)
    return Problem(name, own, drawn_targets(own, seed), arguments)


def digits(samples: int, seed: int) -> Problem:
    """Return ResNet-20 on scikit-learn's digits, which is trained in seconds; draws of its samples share none."""
    net, pool, others = resnet20(DIGITS_EPOCHS)
    own = pool[torch.randperm(len(pool), generator=Generator().manual_seed(0))][seed * samples : (seed + 1) * samples]
    loaded = Subject(net, list(own.split(64)), list(others.split(128)), Categorical(), of_classes)
    return Problem("resnet20", loaded, drawn_targets(loaded, seed), {})


def trained(networks: TrainedNetworks, name: str, samples: int, seed: int) -> Problem:
    """Return a network that was trained on Fashion-MNIST with seed 0, and calibration images of a seed."""
    calibration = networks.calibration(seed, samples, split=0)
    test = networks.test()
    images, labels = torch.cat([one for one, _ in test]), torch.cat([two for _, two in test])

    def quality(reference: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Any]) -> dict[str, float]:
        right = torch.cat(list(found)).argmax(1) == labels
        return {**of_classes(reference, found, batches), "accuracy": float(right.double().mean())}

    batches = [one for one, _ in calibration]
    net = networks.network(name, 0)
    own = Subject(net, batches, list(images.split(250)), Categorical(), quality)
    return Problem(name, own, torch.cat([two for _, two in calibration]), {})


def drawn_targets(loaded: Subject, seed: int) -> Tensor:
    """Return targets drawn from what the float model says, by its likelihood: Fisher's, for want of a user's own."""
    generator = Generator().manual_seed(seed)
    with torch.no_grad():
        outputs = torch.cat([loaded.model(batch) for batch in loaded.calibration]).movedim(1, -1)
    if isinstance(loaded.likelihood, Gaussian):
        return outputs + loaded.likelihood.variance**0.5 * torch.randn(outputs.shape, generator=generator)
    found = torch.multinomial(outputs.softmax(-1).flatten(0, -2), 1, generator=generator)
    return found.view(outputs.shape[:-1])
