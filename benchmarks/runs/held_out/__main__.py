"""What pairs of layers are worth on images that no policy has seen, and how far policies depend on calibration images.

Five draws of 256, 1,024 and 4,096 training images each give a Taylor model; its quadratic policy (with and without
shrinkage) and its additive one are rounded and repaired on the same images and measured on held-out ones.

    python -m benchmarks.runs.held_out --root DIR
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
from .measuring import CASES, measure
from .summary import KEYS, summaries
from .targets import targets


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("held_out", __doc__, images=True)
    everything = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="+", choices=everything, default=everything)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="draws of calibration images")
    parser.add_argument("--samples", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.25, 2.5, 3.0, 4.0])
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths that are offered")
    parser.add_argument("--held-out", type=int, default=2048, help="images that policies are measured on")
    arguments = parsed(
        parser, words, cases=[2, 3], seeds=[0, 1], samples=[64], budgets=[3.5], bits=[2, 4, 8], held_out=64
    )
    parts = parts_of(arguments)
    draws = [
        row
        for case, samples, seed in product(arguments.cases, arguments.samples, arguments.seeds)
        for row in parts.rows(
            "-".join((*CASES[case], str(samples), f"seed{seed}")), partial(measure, case, samples, seed, arguments)
        )
    ]
    rows = summaries(draws)
    print_table(rows)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {
            **settings_of(arguments, "cases"),
            "cases": [list(CASES[case]) for case in arguments.cases],
            "skipped": parts.left_out,
        },
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a case."""
    table = Table(title="Held-out divergence, means over calibration draws")
    titles = ("additive", "quadratic", "quadratic / additive", "unshrunk / additive", "groups changed", "spread")
    for title in (*KEYS, *titles):
        table.add_column(title)
    for row in rows:
        error = row["quadratic_difference_error"] / row["divergence_additive"]
        table.add_row(
            *(str(row[key]) for key in KEYS),
            f"{row['divergence_additive']:.5f}",
            f"{row['divergence_quadratic']:.5f}",
            f"{row['quadratic_over_additive']:.2f} +- {error:.2f}",
            f"{row['unshrunk_over_additive']:.2f}",
            f"{row['groups_changed_quadratic']:.1f} of {row['groups']}",
            f"{100 * row['relative_spread_quadratic']:.0f} %",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
