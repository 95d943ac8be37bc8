"""Accuracy against bits: rounding, allocation and repair, each without and with, and no fine-tuning anywhere.

Two networks are trained on Fashion-MNIST, once for each seed, and quantized with 1,024 unaugmented training images;
the 10,000 test images only report. Parts may run one by one; the last command collects what is there:

    python -m benchmarks.runs.compression --root DIR --networks resnet20 --seeds 0
    python -m benchmarks.runs.compression --root DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from ...problems.images import CALIBRATION
from ...tools.selecting import Rows, grouped, mean_of
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import measure
from .targets import targets

NETWORKS = ("resnet20", "mobilenet")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("compression", __doc__, images=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[2.0, 2.25, 2.5, 3.0, 4.0], help="average bits, scales counted"
    )
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths that are offered")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="training images")
    arguments = parsed(
        parser, words, networks=NETWORKS[:1], seeds=[0], budgets=[2.0, 4.0], bits=[2, 4, 8], calibration=64
    )
    parts = parts_of(arguments)
    measured = [
        {"network": name, "seed": seed, **row}
        for name, seed in product(arguments.networks, arguments.seeds)
        for row in parts.rows(f"{name}-seed{seed}-epochs{arguments.epochs}", partial(measure, name, seed, arguments))
    ]
    rows = [row for row in measured if "skipped" not in row]
    print_table(rows)
    reached = targets(rows)
    skipped = sorted({row["skipped"] for row in measured if "skipped" in row})
    conclude(arguments, rows, reached, {**settings_of(arguments), "skipped": skipped + parts.left_out})


def print_table(rows: Rows) -> None:
    """Print means over seeds."""
    table = Table(title="Test images, mean over seeds")
    keys = ("network", "rounding", "policy", "repair", "budget")
    for title in keys:
        table.add_column(title)
    for title in ("bits/weight", "accuracy", "points lost", "divergence"):
        table.add_column(title, justify="right")
    for key, found in grouped(rows, *keys).items():
        bits, accuracy, lost, divergence = (
            mean_of(found, name) for name in ("bits", "accuracy", "points_lost", "divergence")
        )
        cells = ("" if value is None else str(value) for value in key)
        table.add_row(*cells, f"{bits:.3f}", f"{accuracy:.2f} %", f"{lost:+.2f}", f"{divergence:.5f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
