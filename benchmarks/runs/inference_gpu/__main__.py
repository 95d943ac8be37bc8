"""How fast packed Linear layers run on a GPU, and which part of its memory's bandwidth they use.

python -m benchmarks.runs.inference_gpu
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from ...methods.inference.on_gpu import copy_bandwidth, measure
from ...tools.environment import PACKAGES
from ...tools.results import Row, write_results
from ..arguments import parsed, parser_of, parts_of

SHAPES = ((1024, 4096), (4096, 4096))
"""Outputs and inputs."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("inference_gpu", __doc__)
    parser.add_argument("--bits", nargs="+", type=int, choices=range(2, 9), default=list(range(2, 9)))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    arguments = parsed(parser, words, bits=[4], batches=[1])
    if not torch.cuda.is_available():
        sys.exit("There is no GPU that CUDA can use, and this benchmark times nothing else.")
    parts, bandwidth = parts_of(arguments), copy_bandwidth()
    measured = [
        row
        for (outputs, inputs), bits in product(SHAPES[: 1 if arguments.quick else None], arguments.bits)
        for row in parts.rows(
            f"linear-{outputs}x{inputs}-{bits}bits-{torch.cuda.get_device_name().replace(' ', '-')}",
            partial(measure, outputs, inputs, bits, arguments.batches, bandwidth),
        )
    ]
    rows = [row for row in measured if "skipped" not in row]
    print_table(rows)
    path = write_results(
        "inference_gpu",
        settings={
            "clock": "CUDA events, medians",
            "copy_bandwidth": bandwidth,
            "skipped": list(dict.fromkeys(row["skipped"] for row in measured if "skipped" in row)),
        },
        results=rows,
        output=arguments.output,
        packages=(*PACKAGES, "humming-kernels"),
    )
    print(f"written to {path}")


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row."""
    table = Table("model", "type", "bits", "batch", "way", "µs", "of copy bandwidth", "error")
    for row in rows:
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.0e}"
        cells = (row["model"], row["dtype"], str(row["bits"]), str(row["batch"]), row["way"])
        table.add_row(*cells, f"{row['microseconds']:,.1f}", f"{row['of_copy_bandwidth']:.2f}", error)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
