"""What a profile costs, in forward passes over the same samples.

    python -m benchmarks.runs.curvature_cost [--networks resnet20 ...]

CPU time of one thread, so that a busy machine disturbs little; the fastest of several forward passes is the unit.
Every estimator is run with all widths, rounded to nearest: the time of rounding is not counted here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table

from ...problems.profiling_cases import WIDTHS
from ...tools.results import Row
from ..arguments import parsed, parser_of
from ..ending import conclude
from .measuring import ESTIMATORS, measure, targets

NETWORKS = ("resnet20", "resnet56", "resnet110", "transformer12")
QUICK = ["resnet8", "transformer1"]


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("curvature_cost", __doc__)
    parser.add_argument("--networks", nargs="+", choices=(*NETWORKS, *QUICK), default=list(NETWORKS))
    parser.add_argument(
        "--all-estimators-on",
        nargs="*",
        choices=(*NETWORKS, *QUICK),
        default=list(NETWORKS),
        help="networks for the estimators whose cost grows with K too (minutes each on the larger ones)",
    )
    parser.add_argument("--batches", type=int, default=4, help="batches for fisher; the others take one")
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    arguments = parsed(parser, words, networks=QUICK, all_estimators_on=QUICK[:1], batches=1, widths=[2, 8])
    torch.set_num_threads(1)
    everything = set(arguments.all_estimators_on)
    wanted = {name: ESTIMATORS if name in everything else ESTIMATORS[:1] for name in arguments.networks}
    rows = [
        row
        for name, estimators in wanted.items()
        for row in measure(name, arguments.batches, arguments.widths, estimators)
    ]
    print_table(rows)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {
            "batches": arguments.batches,
            "widths": arguments.widths,
            "clock": "CPU time, one thread",
            "skipped": [f"all but fisher on {name}" for name in wanted if name not in everything],
        },
    )


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a row."""
    table = Table("network", "estimator", "K", "forward passes", "per candidate", "pairwise method")
    for row in rows:
        each = row["forwards_per_candidate"]
        cells = (row["network"], row["estimator"], str(row["candidates"]), f"{row['forwards']:.1f}")
        table.add_row(*cells, f"{each:.2f}" if each else "", str(row["pairwise_forwards"]))
    Console().print(table)


if __name__ == "__main__":
    main()
