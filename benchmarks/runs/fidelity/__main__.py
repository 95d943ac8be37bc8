"""How well each estimator predicts the loss of random policies, beside its diagonal and the scores of other tools.

The Taylor models are made from 512 unaugmented training images; the loss of 250 random policies of 2 to 8 bits is
measured on images that were held out of training. The divergence from the float model is predicted and measured (for
the hessian, the change of the cross entropy), without repair and with re-estimated BatchNorm statistics. Results hold
summaries; the losses of every policy stay in the kept parts.

    python -m benchmarks.runs.fidelity --root DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from ...tools.results import Row
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import measure
from .summary import KEYS, curves, summaries
from .targets import targets

ROUNDINGS = ("nearest", "second_order")
STATISTICS = ("frozen", "reestimated")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("fidelity", __doc__, images=True)
    parser.add_argument("--policies", type=int, default=200, help="policies of evenly drawn widths")
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths, without a gap")
    parser.add_argument("--calibration", type=int, default=512, help="training images for the Taylor models")
    parser.add_argument("--held-out", type=int, default=1024, help="images that policies are measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--roundings", nargs="+", choices=ROUNDINGS, default=ROUNDINGS)
    parser.add_argument("--statistics", nargs="+", choices=STATISTICS, default=STATISTICS)
    quick = {"policies": 16, "bits": [2, 3], "calibration": 64, "held_out": 64, "statistics": STATISTICS[1:]}
    arguments = parsed(parser, words, **quick)
    parts = parts_of(arguments)
    size = f"{arguments.policies}-{arguments.calibration}-{arguments.held_out}"
    policies = [
        row
        for rounding, statistics in product(arguments.roundings, arguments.statistics)
        for row in parts.rows(
            f"{rounding}-{statistics}-seed{arguments.seed}-{size}", partial(measure, rounding, statistics, arguments)
        )
    ]
    rows = summaries(policies)
    print_table(rows)
    reached = targets(rows)
    conclude(arguments, rows, reached, {**settings_of(arguments), "skipped": parts.left_out}, curves=curves(policies))


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a predictor."""
    table = Table(title="Predicted against measured loss of random policies")
    for title in (*KEYS, "predictor"):
        table.add_column(title)
    for title in ("Spearman", "better half", "ratio", "ratio, better half"):
        table.add_column(title, justify="right")
    for row in rows:
        ratios = (row.get("median_ratio"), row.get("median_ratio_better_half"))
        table.add_row(
            *(row[key] for key in KEYS),
            row["predictor"],
            f"{row['spearman']:.3f}",
            f"{row['spearman_better_half']:.3f}",
            *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
