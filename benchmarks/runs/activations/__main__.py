"""Weights and inputs in one program: ResNet-20 on scikit-learn's digits, uniform policies and mixed ones at their cost.

Mixed policies take no more bit operations than the uniform one whose name they bear, with the terms between layers, and
between weights and inputs (quadratic), or without (additive). No fine-tuning; images of the test split only report.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from lightning_mpq.demo.resnet import ResNet

from ...tools.results import write_results
from ...tools.targets import at_least, at_most, print_targets
from ..arguments import parsed, parser_of, settings_of
from .measuring import images_of, measure, profile_cost, trained
from .runtime import OWN, quality, times


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("activations", __doc__)
    parser.add_argument("--depth", type=int, default=20, help="of the ResNet")
    parser.add_argument("--epochs", type=int, default=12, help="of the float training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4, 6, 8], help="widths of weights on offer")
    parser.add_argument("--inputs", type=int, nargs="+", default=[4, 6, 8], help="widths of inputs on offer")
    parser.add_argument("--calibration", type=int, default=320, help="training images")
    parser.add_argument("--repeats", type=int, default=40, help="of each run in onnxruntime")
    arguments = parsed(parser, words, depth=8, epochs=1, bits=[4, 8], inputs=[4, 8], calibration=64, repeats=2)
    rows, deployed = [], []
    for seed in arguments.seeds:
        network, data = trained(arguments.depth, arguments.epochs, seed)
        calibration, test = images_of(data, arguments.calibration)
        rows += [{"seed": seed, **row} for row in measure(network, calibration, test, arguments.bits, arguments.inputs)]
        deployed += [{"seed": seed, **row} for row in quality(network, calibration, test)]
    print_table(rows)
    torch.manual_seed(0)
    larger = ResNet(arguments.depth).eval()
    images = torch.randn(64, 1, 28, 28)
    costs = list(profile_cost(larger, list(images.split(32)), arguments.bits, arguments.inputs))
    speeds = list(times(larger, images, arguments.repeats))
    by_name = {row["policy"]: row for row in rows if row["seed"] == arguments.seeds[0]}
    targets = [at_most("points lost by W8A8", by_name["W8A8"]["points_lost"], 0.1)]
    targets += [
        at_most("points lost by mixed at the operations of W4A4", by_name["W4A4 BOPs, quadratic"]["points_lost"], 1.0)
    ]
    targets += [at_most(f"profile with inputs / without, {c['statistics']} statistics", c["ratio"], 1.5) for c in costs]
    targets += [
        at_least(f"speed in onnxruntime, {s['file']}, batch {s['batch']}, float = 1", s["speedup"], 1.7)
        for s in speeds
        if s["operations_of_integers"]
    ]
    by_file = {row["file"]: row for row in deployed if row["seed"] == arguments.seeds[0]}
    limit = by_file[OWN]["divergence"]
    targets += [at_most("divergence of W8A8 in onnxruntime, its own = limit", by_file["W8A8"]["divergence"], limit)]
    print_targets(targets, arguments.quick)
    path = write_results(
        "activations",
        settings=settings_of(arguments),
        results=rows,
        targets=targets,
        output=arguments.output,
        profile=costs,
        runtime=speeds,
        deployed=deployed,
    )
    print(f"written to {path}")


def print_table(rows: list[dict[str, object]]) -> None:
    """Print a line for each policy."""
    table = Table(title="Test and validation images that nothing was fitted to")
    keys = ("seed", "policy", "weights", "inputs", "bit_operations", "accuracy", "divergence", "predicted", "clipped")
    for key in keys:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v := row[key], float) else str(v) for key in keys))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
