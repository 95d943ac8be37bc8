"""What each repair gains on images that no choice has seen, and what scales for blocks of columns gain as candidates.

A policy is packed with codes by float inputs or in sequence, and measured as it is and after biases (networks without
BatchNorm) or BatchNorm statistics are corrected. Granularities compete as candidates under the same budgets, packed
and repaired as the callback does it. Parts are kept; the last command collects those that are there:

    python -m benchmarks.runs.repair --root DIR --cases 0 1
    python -m benchmarks.runs.repair --root DIR --known
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.table import Table

from ...tools.selecting import Rows
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import granularities, repairs
from .targets import divergence, targets

CASES = (
    ("repair", "transformer", 0),
    ("repair", "mobilenet", 0),
    ("repair", "mobilenet", 1),
    ("repair", "resnet20 folded", 0),
    ("granularity", "transformer", 0),
    ("granularity", "resnet20", 0),
)
"""What is compared, network, training seed."""
WAYS = {"repair": repairs, "granularity": granularities}


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("repair", __doc__, images=True)
    everything = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="+", choices=everything, default=everything)
    parser.add_argument("--bits", type=int, nargs="+", default=list(range(2, 9)), help="widths that are offered")
    parser.add_argument("--budgets", type=float, nargs="+", help="average bits, in place of those for each network")
    parser.add_argument("--calibration", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=2048)
    arguments = parsed(parser, words, cases=[3, 4], bits=[2, 3, 4], budgets=[3.5], calibration=64, held_out=64)
    parts = parts_of(arguments)
    rows = [
        {"compared": compared, "network": network, "seed": seed, **row}
        for compared, network, seed in (CASES[case] for case in arguments.cases)
        for row in parts.rows(
            f"{compared}-{network.replace(' ', '-')}-seed{seed}-{arguments.calibration}",
            partial(WAYS[compared], network, seed, arguments),
        )
    ]
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


def print_table(rows: Rows) -> None:
    """Print one line a row."""
    table = Table(title="Held-out images")
    for title in ("compared", "network", "seed", "policy", "rounding or candidates", "repaired", "divergence", "lost"):
        table.add_column(title)
    for row in rows:
        repaired = " + ".join(row["repaired"]) or "-" if "repaired" in row else f"{row['groups_in_blocks']} in blocks"
        table.add_row(
            row["compared"],
            row["network"],
            str(row["seed"]),
            row.get("policy") or f"{row['budget']:g} bits",
            row.get("offered") or row["rounding"],
            repaired,
            f"{divergence(row):.5f}",
            f"{row['held_out']['points_lost']:+.2f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
