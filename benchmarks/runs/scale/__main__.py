"""How memory and time grow with a language model: random Llama shapes, stage by stage.

    python -m benchmarks.runs.scale [--shapes 30M 135M 360M 1B] [--dtypes float32 bfloat16]

Each model is measured in a process of its own, on one thread. What is counted is memory of the process's own; rounded
candidates lie on disk, as under ``cache_dir``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from ...problems.llama import SHAPES
from ...tools.results import Row
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .goals import goals
from .stages import stages

DTYPES = ("float32", "bfloat16")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("scale", __doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["30M", "135M"])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--widths", nargs="+", type=int, default=[2, 3, 4, 8], help="bits that are offered")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--samples", type=int, default=4, help="samples of a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a sample")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parsed(parser, words, shapes=["tiny"], dtypes=["bfloat16"], widths=[2, 8], length=16)
    sizes = (arguments.widths, arguments.batches, arguments.samples, arguments.length)
    if arguments.one:
        print(json.dumps(stages(arguments.shapes[0], arguments.dtypes[0], *sizes)))
        return
    parts, given = parts_of(arguments), "-".join(map(str, (*arguments.widths, *sizes[1:])))
    rows = [
        row
        for shape, dtype in product(arguments.shapes, arguments.dtypes)
        for row in parts.rows(f"{shape}-{dtype}-{given}", partial(measured, shape, dtype, *sizes))
    ]
    reached = goals(rows)
    print_table(rows)
    conclude(arguments, rows, reached, {**settings_of(arguments, "one"), "skipped": parts.left_out})


def measured(shape: str, dtype: str, widths: Sequence[int], batches: int, samples: int, length: int) -> Iterator[Row]:
    """Yield the stages of one model, measured in a process of its own."""
    numbers = {"--batches": batches, "--samples": samples, "--length": length}
    command = [sys.executable, "-m", "benchmarks.runs.scale", "--one", "--shapes", shape, "--dtypes", dtype]
    command += ["--widths", *map(str, widths), *(str(word) for pair in numbers.items() for word in pair)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    yield from json.loads(done.stdout.splitlines()[-1])


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row."""
    table = Table("shape", "type", "stage", "peak, times the weights", "estimated", "CPU s", "ns a weight and token")
    for row in rows:
        peak = f"{row['peak_bytes'] / row['weight_bytes']:.2f}"
        guess = "" if row["estimated_bytes"] is None else f"{row['estimated_bytes'] / row['weight_bytes']:.2f}"
        cells = (row["shape"], row["dtype"], row["stage"], peak, guess)
        table.add_row(*cells, f"{row['cpu_seconds']:.1f}", f"{row['ns_a_weight_and_token']:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
