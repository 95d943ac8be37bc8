"""Weights and inputs in one program, on Fashion-MNIST: uniform policies, and mixed ones at the cost of uniform ones.

Mixed policies take no more bit operations than the uniform one whose name they bear (or neither more operations nor
more bytes), with the terms between layers, and between weights and inputs (quadratic), or without (additive). No
fine-tuning, but for one figure at 4 by 4 bits; test images only report. Ranges are found, and codes rounded, on
training images.

    python -m benchmarks.runs.activations --root DIR

``--networks digits``, for which any folder will do, is a ResNet-20 on the digits of scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from ...problems.digits_resnet import labelled
from ...problems.trained import TrainedNetworks
from ...tools.accuracy import Images
from ..arguments import networks_of, parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .learning import learned
from .measuring import measure, profile_cost
from .runtime import quality, times
from .targets import LOST, targets

KINDS = ("policies", "deployed", "profile", "runtime", "learned")
_BATCH = 128
"""Training images of a step of the short fine-tuning."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("activations", __doc__, images=True)
    parser.add_argument("--networks", nargs="+", choices=LOST, default=["resnet20", "mobilenet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="widths of weights on offer")
    parser.add_argument("--inputs", type=int, nargs="+", default=[4, 6, 8], help="widths of inputs on offer")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--tested", type=int, help="batches of test images that are reported on; default all")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is measured; default all")
    parser.add_argument("--steps", type=int, default=200, help="of fine-tuning at 4 by 4 bits")
    parser.add_argument("--repeats", type=int, default=200, help="of each run in onnxruntime")
    arguments = parsed(parser, words, bits=[4, 8], inputs=[4, 8], calibration=64, repeats=2, steps=2)
    networks, parts = networks_of(arguments), parts_of(arguments)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for name, seed, kind in product(arguments.networks, arguments.seeds, arguments.kinds):
        part = f"{name}-seed{seed}-epochs{arguments.epochs}-{kind}"
        rows = parts.rows(part, partial(_measured, kind, networks, name, seed, arguments))
        found[kind] += [{"network": name, "seed": seed, **row} for row in rows]
    print_table(found["policies"])
    learned_rows = found.pop("learned")
    reached = targets(**found)
    settings = {**settings_of(arguments), "skipped": parts.left_out}
    conclude(
        arguments, found["policies"], reached, settings, deployed=found["deployed"], profile=found["profile"],
        runtime=found["runtime"], learned=learned_rows,
    )  # fmt: skip


def _measured(kind: str, networks: TrainedNetworks, name: str, seed: int, arguments: Any) -> Iterator[dict[str, Any]]:
    network, calibration, training, test = _case(networks, name, seed, arguments)
    images = [batch for batch, _ in calibration]
    if kind == "policies":
        return measure(network, calibration, test, arguments.bits, arguments.inputs)
    if kind == "deployed":
        return quality(network, calibration, test)
    if kind == "profile":
        return profile_cost(network, images[:1], arguments.bits, arguments.inputs)
    if kind == "learned":
        return learned(network, calibration, training, test, arguments.steps)
    return times(network, images[0], arguments.repeats)


def _case(networks: TrainedNetworks, name: str, seed: int, arguments: Any) -> tuple[nn.Module, Images, Images, Images]:
    """Return a network, and images to calibrate on, to train on and to report on."""
    if name == "digits":
        network, training, unseen = labelled(arguments.epochs)
        return network, training[: arguments.calibration // 64], training, unseen[: arguments.tested]
    network, calibration = networks.network(name, seed), networks.calibration(seed, arguments.calibration)
    training = networks.calibration(seed, _BATCH * arguments.steps)
    return network, calibration, training, networks.test()[: arguments.tested]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line for each policy."""
    table = Table(title="Test images, that nothing was fitted to")
    keys = (
        "network",
        "policy",
        "weights",
        "inputs",
        "bit_operations",
        "accuracy",
        "divergence",
        "predicted",
        "clipped",
    )
    for key in keys:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v := row[key], float) else str(v) for key in keys))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
