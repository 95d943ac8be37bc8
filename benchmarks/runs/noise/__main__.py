"""What to do about noise in a Taylor model of few samples, judged on samples that no choice has seen.

A ResNet-20 is measured a slice of samples at a time; of pretrained networks the blocks of data are taken that recorded
Taylor models keep sums of. Each way of choosing gets a few slices; its policy is judged by the Taylor model of others,
as measured, relative to the additive policy of the same few. Policies from ten times the samples say what there is to
gain by knowing pairs better.

    python -m benchmarks.runs.noise --recorded DIR
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...tools.parts import Parts
from ...tools.results import Row
from ...tools.selecting import grouped, mean_of, spread
from ...tools.targets import Target, at_most
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import MORE, measure
from .slices import CASES, RESNET, Case, slices_of
from .ways import SOLVING, WAYS

WITHIN = 0.01
"""Of the additive policy's loss, by which the default may lose to another way."""


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("noise", __doc__)
    everything = list(range(len(CASES)))
    parser.add_argument("--cases", type=int, nargs="+", choices=everything, default=everything)
    parser.add_argument("--recorded", type=Path, help="folder of NETWORK-ROUNDING.taylor, for the pretrained networks")
    parser.add_argument("--above", type=float, nargs="+", default=[0.5, 1.5], help="bits above the least possible")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there")
    arguments = parsed(parser, words, above=[1.0])
    parts = parts_of(arguments)
    cases = [CASES[number] for number in arguments.cases]
    if arguments.quick:
        cases = [Case(RESNET, "nearest", 10, 2, draws=1)]
    measured = [row for case in cases for row in rows_of(parts, case, arguments)]
    rows = summaries(measured)
    print_table(rows)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {
            **SOLVING,
            **settings_of(arguments, "cases", "recorded"),
            "skipped": parts.left_out,
        },
    )


def rows_of(parts: Parts, case: Case, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of a case; none where it was not recorded."""
    smaller = {"epochs": 1, "images": 2} if arguments.quick else {}

    def measured() -> Iterator[Row]:
        yield from measure(case, slices_of(case, arguments.recorded, **smaller), arguments.above)

    try:
        return parts.rows(case.name, measured)
    except FileNotFoundError as error:
        parts.left_out.append(f"{case.name}: {error}")
        return []


def summaries(measured: Sequence[Row]) -> list[Row]:
    """Return one row for each case and way: mean over draws and budgets, and the standard error over draws."""
    rows: list[Row] = []
    keys = ("network", "rounding")
    for found in grouped([row for row in measured if row["draw"] is not None], *keys, "way").values():
        first = found[0]
        pool = next(row for row in measured if row["draw"] is None and all(row[key] == first[key] for key in keys))
        draws = [mean_of(same, "over_additive") for same in grouped(found, "draw").values()]
        rows.append(
            {key: first[key] for key in (*keys, "way")}
            | {"over_additive": sum(draws) / len(draws), "error": spread(draws) / len(draws) ** 0.5}
            | {"worst": max(row["over_additive"] for row in found)}
            | {
                f"{key}{suffix}": mean_of(of, key)
                for suffix, of in (("", found), ("_pool", [pool]))
                for key in ("samples", "beyond_three_errors", "noise")
            }
        )
    return rows


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return whether shrinkage, the default, does as well as every other way, and as the additive policy."""
    found = []
    for (network, rounding), same in grouped(rows, "network", "rounding").items():
        loss = {row["way"]: row["over_additive"] for row in same}
        best = min((way for way in WAYS if way != "shrunk"), key=lambda way: loss[way])
        name = f"{network}, {rounding}: unseen loss of the default less that of {best!r}, of the additive one's"
        found.append(at_most(name, loss["shrunk"] - loss[best], WITHIN))
    return found


def print_table(rows: Sequence[Row]) -> None:
    """Print the mean of each way, with its error."""
    table = Table(title="Loss on unseen samples over that of the additive policy")
    cases = grouped(rows, "network", "rounding")
    table.add_column("way")
    for (network, rounding), same in cases.items():
        table.add_column(f"{network}, {rounding}, {same[0]['samples']:g} samples", justify="right")
    for way in (*WAYS, *MORE.values()):
        cells = [next(row for row in same if row["way"] == way) for same in cases.values()]
        table.add_row(way, *(f"{row['over_additive']:.3f} +- {row['error']:.3f}" for row in cells))
    for title, key in (("pairs beyond 3 errors", "beyond_three_errors"), ("noise in pairs", "noise")):
        cells = [same[0] for same in cases.values()]
        table.add_row(title, *(f"{row[key]:.2%}; {row[key + '_pool']:.2%}" for row in cells))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
