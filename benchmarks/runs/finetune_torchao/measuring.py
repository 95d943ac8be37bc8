"""Everybody trains all parameters on the same batches in the same order with the same optimizer."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import islice, product
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from ...methods.finetuning import WAYS, Prepared, step
from ...problems.trained import TrainedNetworks
from ...tools.accuracy import Images, compare, outputs
from ...tools.results import Row
from ..arguments import networks_of

LEARNING_RATE, WEIGHT_DECAY = 2e-4, 0.05
FLOAT = "float, trained on"


def measure(bits: int, way: str, arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the row of one fine-tuning; ``way`` may be `FLOAT`, which is the same training without quantization."""
    network, batches, known = network_and_batches(arguments)
    test, reference, labels = test_outputs(networks_of(arguments), arguments.seed)
    float_accuracy = 100 * float((reference.argmax(1) == labels).double().mean())
    student = copy.deepcopy(network)
    prepared = Prepared.in_float(student) if way == FLOAT else WAYS[way](student, bits, known)
    train(student, prepared, batches)
    trained_logits = _first_logits(student, test)
    stored = prepared.convert()
    yield {
        "network": "transformer",
        "seed": arguments.seed,
        "bits": bits or None,
        "way": way,
        "code_and_scale_bits": stored.grid_bits,
        "stored_bits": stored.held_bits,
        "float_accuracy": float_accuracy,
        "change_by_converting": float((trained_logits - _first_logits(student, test)).abs().max()),
        **compare(student, test, reference),
    }


def step_ratio(way: str, bits: int, arguments: argparse.Namespace, repeats: int = 5) -> Iterator[Row]:
    """Yield the CPU time of a way's step over that of a float step: medians of interleaved steps."""
    network, batches, known = network_and_batches(arguments)
    students = {name: copy.deepcopy(network) for name in (FLOAT, way)}
    prepared = {FLOAT: Prepared.in_float(students[FLOAT]), way: WAYS[way](students[way], bits, known)}
    optimizers = {name: make_optimizer(students[name].train(), each) for name, each in prepared.items()}
    seconds: dict[str, list[float]] = {name: [] for name in students}
    for number, (name, student) in product(range(repeats + 1), students.items()):
        start = time.process_time()
        step(student, batches[0], optimizers[name])
        if number:  # The first step makes the optimizer's state.
            seconds[name].append(time.process_time() - start)
    yield {"way": way, "ratio": median(seconds[way]) / median(seconds[FLOAT])}


@contextmanager
def layers_called() -> Iterator[None]:
    """Let torch's encoder layers call their Linear layers in evaluation too.

    By default they multiply by the weights without calling the layers, and nobody's fake quantization would be seen.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def network_and_batches(arguments: argparse.Namespace) -> tuple[nn.Module, Images, Images]:
    """Return the trained network, training batches in the order of ``--seed``, and calibration batches."""
    networks = networks_of(arguments)
    network, data = networks.network("transformer", arguments.seed), networks.data(arguments.seed)
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), arguments.steps))
    if len(batches) < arguments.steps:
        raise ValueError(f"An epoch has {len(batches)} batches, and {arguments.steps} steps were asked for.")
    return network, batches, networks.calibration(arguments.seed, arguments.calibration)


@cache
def test_outputs(networks: TrainedNetworks, seed: int) -> tuple[Images, Tensor, Tensor]:
    """Return test images, and the float network's log-probabilities of them and their labels, as `outputs` does."""
    test = networks.test()
    return test, *outputs(networks.network("transformer", seed), test)


def train(network: nn.Module, prepared: Prepared, batches: Images) -> None:
    """Train all parameters: AdamW with a cosine; scales learn without weight decay."""
    optimizer = make_optimizer(network, prepared)
    schedule = CosineAnnealingLR(optimizer, len(batches))
    network.train()
    for batch in batches:
        step(network, batch, optimizer)
        schedule.step()


def make_optimizer(network: nn.Module, prepared: Prepared) -> AdamW:
    """Return the optimizer that everybody gets."""
    scales = {id(scale) for scale in prepared.scales}
    weights = [parameter for parameter in network.parameters() if id(parameter) not in scales]
    optimizer = AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    if prepared.scales:
        optimizer.add_param_group({"params": list(prepared.scales), "weight_decay": 0.0})
    return optimizer


def _first_logits(network: nn.Module, test: Images) -> Tensor:
    """Return log-probabilities of the first 128 test images, [images, classes] float64."""
    images, labels = test[0]
    return outputs(network, [(images[:128], labels[:128])])[0]
