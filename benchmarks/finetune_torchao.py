"""Our fine-tuning beside torchao's quantization-aware training, on the layers that both can take.

The Linear layers of a small vision transformer (two in each encoder layer, and the head) at 2, 3 and 4 bits, weights
only, one scale per output channel; attention and patches stay in float. Everybody trains all parameters on the same
batches in the same order with the same optimizer, and is measured as converted, on the 10,000 test images. Nothing
is chosen by these images: learning rate and steps were set beforehand and are the same for all.

    python -m benchmarks.finetune_torchao --root DIR --quick
    OMP_NUM_THREADS=1 python -m benchmarks.finetune_torchao --root DIR
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import islice, product
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from .accuracy import compare, outputs
from .common import PACKAGES, write_results
from .finetune_ways import WAYS, Prepared
from .networks import CALIBRATION, Images, calibration, data_module, test_split, trained
from .parts import parser_of, part, settings_of

LEARNING_RATE, WEIGHT_DECAY = 2e-4, 0.05
FLOAT = "float, trained on"


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("finetune_torchao", __doc__)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:3])
    parser.add_argument("--steps", type=int, default=40, help="training steps of 128 images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two steps and a thousand test images; writes nothing")
    arguments = parser.parse_args()
    # In evaluation torch's encoder layers multiply by the weights of their Linear layers without calling them, so that
    # nobody's fake quantization would be seen.
    torch.backends.mha.set_fastpath_enabled(False)
    if arguments.quick:
        arguments.steps = 2
        rows = [row for bits, way in product(arguments.bits, arguments.ways) for row in measured(bits, way, arguments)]
        print_table(rows)
        return
    wanted = [(0, FLOAT), *product(arguments.bits, arguments.ways)]
    found = {
        (bits, way): part(
            "finetune_torchao",
            f"{file_name(way)}-{bits}bits-seed{arguments.seed}-{arguments.steps}",
            partial(measured, bits, way, arguments),
            only_known=arguments.known,
        )
        for bits, way in wanted
    }
    ratios = {
        row["way"]: row["ratio"]
        for way in arguments.ways
        for row in part(
            "finetune_torchao",
            f"step_time-{file_name(way)}-{arguments.bits[0]}bits",
            partial(step_ratio, way, arguments.bits[0], arguments),
            only_known=arguments.known,
        )
    }
    rows = [row for each in found.values() for row in each]
    print_table(rows)
    print("CPU time of a step over that of a float step:", ratios)
    path = write_results(
        "finetune_torchao",
        settings={
            **settings_of(arguments, "quick"),
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "calibration_images": CALIBRATION,
            "step_time_over_float_step": ratios,
            "step_time_clock": "CPU time, medians of interleaved steps",
            "skipped": [f"{way}, {bits} bits" for (bits, way), each in found.items() if not each],
        },
        results=rows,
        output=arguments.output,
        packages=(*PACKAGES, "torchao"),
    )
    print(f"written to {path}")


def network_and_batches(arguments: argparse.Namespace) -> tuple[nn.Module, Images, Images]:
    """Return the trained network, training batches in the order of ``--seed``, and calibration batches."""
    network = trained("transformer", arguments.seed, arguments.root, arguments.epochs).network
    data = data_module(arguments.root, arguments.seed)
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), arguments.steps))
    if len(batches) < arguments.steps:
        raise ValueError(f"An epoch has {len(batches)} batches, and {arguments.steps} steps were asked for.")
    return network, batches, calibration(data, arguments.seed)


@cache
def test_outputs(root: str, seed: int, epochs: int, batches: int | None) -> tuple[Images, Tensor, Tensor]:
    """Return test images, and the float network's log-probabilities of them and their labels, as `outputs` does."""
    test = test_split(data_module(root, seed))[:batches]
    return test, *outputs(trained("transformer", seed, root, epochs).network, test)


def measured(bits: int, way: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the row of one fine-tuning; ``way`` may be `FLOAT`, which is the same training without quantization."""
    network, batches, known = network_and_batches(arguments)
    few = 2 if arguments.quick else None
    test, reference, labels = test_outputs(arguments.root, arguments.seed, arguments.epochs, few)
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


def step(network: nn.Module, batch: tuple[Tensor, Tensor], optimizer: AdamW) -> None:
    """Take one step on the cross entropy."""
    images, labels = batch
    optimizer.zero_grad()
    cross_entropy(network(images), labels).backward()
    optimizer.step()


def step_ratio(way: str, bits: int, arguments: argparse.Namespace, repeats: int = 5) -> Iterator[dict[str, Any]]:
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


def file_name(way: str) -> str:
    """Return the name of a way without blanks and commas."""
    return way.replace(", ", "-").replace(" ", "_")


def _first_logits(network: nn.Module, test: Images) -> Tensor:
    """Return log-probabilities of the first 128 test images, [images, classes] float64."""
    images, labels = test[0]
    return outputs(network, [(images[:128], labels[:128])])[0]


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per fine-tuning."""
    table = Table(title="Linear layers of a transformer, test images")
    for title in ("bits", "way", "codes and scales", "as held", "accuracy", "points lost", "divergence"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            str(row["bits"] or "-"),
            row["way"],
            f"{row['code_and_scale_bits']:.2f}",
            f"{row['stored_bits']:.2f}",
            f"{row['accuracy']:.2f} %",
            f"{row['points_lost']:+.2f}",
            f"{row['divergence']:.5f}",
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
