"""What measuring the best few policies, and expanding the loss again, gain on images that no choice has seen.

For each training seed, rounding and budget: the policy as solved, and the policy that is kept of those measured on the
calibration images, both quantized and repaired as the callback does it, measured on held-out images.

    python -m benchmarks.runs.selection --root DIR
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

from rich.console import Console
from rich.table import Table

from ...tools.results import Row
from ...tools.selecting import Rows, grouped, mean_of
from ...tools.targets import Target, at_most
from ..arguments import add_draws, parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import measure

CASES = (("second_order", 2.1), ("second_order", 2.25), ("nearest", 2.25), ("nearest", 2.5))
"""Rounding and average bits."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("selection", __doc__, images=True)
    everything = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="+", choices=everything, default=everything)
    add_draws(parser, held_out=2048)
    arguments = parsed(parser, words, cases=[3], seeds=[0], bits=[2, 3, 4], calibration=64, held_out=64)
    parts = parts_of(arguments)
    rows = [
        row
        for seed, (rounding, budget) in product(arguments.seeds, (CASES[case] for case in arguments.cases))
        for row in parts.rows(
            f"resnet20-seed{seed}-{rounding}-{budget:g}-{arguments.calibration}",
            partial(measure, seed, rounding, budget, arguments),
        )
    ]
    print_table(rows)
    reached = targets(rows)
    conclude(arguments, rows, reached, {**settings_of(arguments, "cases"), "skipped": parts.left_out})


def targets(rows: Rows) -> list[Target]:
    """Return: selection loses nowhere by more than chance."""
    found = []
    for (rounding, budget), mine in grouped(rows, "rounding", "budget").items():
        ratio = mean_of(mine, "held_out_kept") / mean_of(mine, "held_out_solved")
        case = f"ResNet-20, {rounding.replace('_', ' ')}, {budget} bits"
        found.append(at_most(f"{case}: held-out loss of the kept over the solved policy", ratio, 1.05))
    return found


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a case."""
    table = Table(title="Divergence on held-out images")
    for title in ("seed", "rounding", "budget", "predicted", "measured", "kept", "solved", "kept", "seconds"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            str(row["seed"]),
            row["rounding"],
            f"{row['budget']:g}",
            f"{row['predicted_solved']:.5f}",
            f"{row['calibration_solved']:.5f}",
            row["kept"],
            f"{row['held_out_solved']:.5f}",
            f"{row['held_out_kept']:.5f}",
            f"{row['seconds'].get('select', 0):.0f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
