"""How fast and how small packed models run: our kernels, torchao and onnxruntime against float32 and bfloat16.

Linear layers (outputs x inputs) and the ResNet-20, at 2 to 8 bits and batches of 1 and 64. All ways of one width and
batch are timed in turns in one process, so that a ratio compares what ran side by side; times are medians.

    python -m benchmarks.runs.inference --threads 2
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from rich.console import Console
from rich.table import Table

from ...problems.inference_models import MODELS
from ...tools.environment import PACKAGES
from ...tools.results import Row
from ..arguments import parsed, parser_of, parts_of
from ..ending import conclude
from .measuring import COUNTED, UNCOUNTED, measure
from .targets import targets

PEERS = ("auto-round-lib", "torchao", "onnxruntime", "onnx")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("inference", __doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--bits", nargs="+", type=int, choices=range(2, 9), default=list(range(2, 9)))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 64])
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on each way to run a model")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parsed(parser, words, models=["linear-64x128"], bits=[4], batches=[1], seconds=0.01)
    torch.set_num_threads(arguments.threads)
    parts = parts_of(arguments)
    measured = [
        row
        for name, bits, batch in product(arguments.models, arguments.bits, arguments.batches)
        for row in parts.rows(
            f"{name.replace(' ', '-')}-batch{batch}-{bits}bits-{arguments.threads}threads-{arguments.seconds:g}s",
            partial(measure, name, batch, bits, arguments.seconds, arguments.threads),
        )
    ]
    rows = [row for row in measured if "skipped" not in row]
    skipped = list(dict.fromkeys(row["skipped"] for row in measured if "skipped" in row))
    Console(width=150).print(table_of(rows))
    for reason in skipped:
        print("skipped:", reason)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {
            "seconds": arguments.seconds,
            "threads": arguments.threads,
            "clock": f"wall time, medians of calls in turns: {UNCOUNTED} uncounted, {COUNTED} counted",
            "scheme": "half-level grid up to 3 bits, symmetric from 4, a scale a channel, rounded to nearest",
            "skipped": skipped,
        },
        packages=(*PACKAGES, *PEERS),
    )


def table_of(rows: Sequence[Row]) -> Table:
    """Return the rows as a table."""
    table = Table("model", "bits", "batch", "way", "stored KiB", "peak KiB", "µs", "x float32", "x bfloat16", "error")
    for row in rows:
        kib = [f"{value / 1024:,.0f}" if value else "" for value in (row["stored_bytes"], row["peak_bytes"])]
        error = "" if row["relative_error"] is None else f"{row['relative_error']:.0e}"
        ratios = (f"{row['over_float32']:.2f}", f"{row['over_bfloat16']:.2f}", error)
        cells = (row["model"], str(row["bits"]), str(row["batch"]), row["way"])
        table.add_row(*cells, *kib, f"{row['microseconds']:,.0f}", *ratios)
    return table


if __name__ == "__main__":
    main()
