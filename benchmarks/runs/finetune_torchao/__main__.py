"""Our fine-tuning beside torchao's quantization-aware training, on the layers that both can take.

The Linear layers of a small vision transformer (two in each encoder layer, and the head) at 2, 3 and 4 bits, weights
only, one scale per output channel; attention and patches stay in float. Everybody trains all parameters on the same
batches in the same order with the same optimizer, and is measured as converted, on the 10,000 test images. Nothing
is chosen by these images: learning rate and steps were set beforehand and are the same for all.

    OMP_NUM_THREADS=1 python -m benchmarks.runs.finetune_torchao --root DIR
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import product

from rich.console import Console
from rich.table import Table

from ...methods.finetuning import WAYS
from ...problems.images import CALIBRATION
from ...tools.environment import PACKAGES
from ...tools.results import Row, write_results
from ..arguments import parsed, parser_of, parts_of, settings_of
from .measuring import FLOAT, LEARNING_RATE, WEIGHT_DECAY, layers_called, measure, step_ratio


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("finetune_torchao", __doc__, images=True)
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS)[:3])
    parser.add_argument("--steps", type=int, default=40, help="training steps of 128 images")
    parser.add_argument("--calibration", type=int, default=CALIBRATION, help="training images for our second start")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parsed(parser, words, bits=[3], steps=2, calibration=64)
    if find_spec("torchao") is None:
        sys.exit("torchao is not installed, and this benchmark compares with it: pip install torchao")
    parts, least = parts_of(arguments), arguments.bits[0]
    with layers_called():
        rows = [
            row
            for bits, way in [(0, FLOAT), *product(arguments.bits, arguments.ways)]
            for row in parts.rows(
                f"{file_name(way)}-{bits}bits-seed{arguments.seed}-{arguments.steps}",
                partial(measure, bits, way, arguments),
            )
        ]
        ratios = {
            row["way"]: row["ratio"]
            for way in arguments.ways
            for row in parts.rows(f"step_time-{file_name(way)}-{least}bits", partial(step_ratio, way, least, arguments))
        }
    print_table(rows)
    print("CPU time of a step over that of a float step:", ratios)
    path = write_results(
        "finetune_torchao",
        settings={
            **settings_of(arguments),
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "step_time_over_float_step": ratios,
            "step_time_clock": "CPU time, medians of interleaved steps",
            "skipped": parts.left_out,
        },
        results=rows,
        output=arguments.output,
        packages=(*PACKAGES, "torchao"),
    )
    print(f"written to {path}")


def file_name(way: str) -> str:
    """Return the name of a way without blanks and commas."""
    return way.replace(", ", "-").replace(" ", "_")


def print_table(rows: Sequence[Row]) -> None:
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
