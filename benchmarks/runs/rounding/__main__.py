"""The search for grids and ranges beside one that solves for every range: time, and errors on unseen samples.

Layers of the sentence encoder MiniLM, see `benchmarks.recorded_instances.pretrained`, with all seven widths and three
grids. One range is solved for each row after a bound has ranked all of them, and a few more after that; of the wide
layers the grid is chosen by the bound on some rows. Beside it every range of every grid is solved for all rows. And how
much larger errors are on unseen samples than on those at hand is compared with what halves of these tell.

    python -m benchmarks.runs.rounding --texts FOLDER
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...problems.subjects import subject
from ...tools.results import Row
from ...tools.targets import Target, at_least, at_most, between
from ..arguments import parsed, parser_of, settings_of
from ..ending import conclude
from .measuring import measure

LAYERS = ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense")


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("rounding", __doc__)
    parser.add_argument("--texts", type=Path, help="folder of html files")
    parser.add_argument("--samples", type=int, default=128, help="calibration samples")
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 4], help="of the encoder")
    arguments = parsed(parser, words, samples=64, blocks=[0])
    if arguments.texts is None and not arguments.quick:
        parser.error("--texts=FOLDER is needed, with html files of at least 400 paragraphs.")
    chosen = subject("made_up" if arguments.quick else "minilm", arguments.texts, arguments.samples)
    names = [f"encoder.encoder.encoder.layer.{block}.{layer}" for block in arguments.blocks for layer in LAYERS]
    rows = list(measure(chosen, ["0", "3"] if arguments.quick else names))
    print_table(rows)
    reached = targets(rows)
    conclude(arguments, rows, reached, settings_of(arguments, "texts"), packages=("torch", "transformers"))


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return: no worse, and many times faster."""
    ratio = sum(row["error"] / row["error_of_all"] for row in rows) / len(rows)
    first = {row["layer"]: row for row in rows}.values()
    told = [row["unseen_told"] / (row["error"] / row["error_on_fitted"]) for row in rows]
    faster = sum(r["processor_seconds_of_all"] for r in first) / sum(r["processor_seconds"] for r in first)
    return [
        at_most("error on unseen samples over that with every range solved, mean of layers and widths", ratio, 1.01),
        at_least("processor time with every range solved over that of the search", faster, 10.0),
        between(
            "growth of errors on unseen samples, told over measured: least of layers and widths", min(told), 0.7, 1.4
        ),
        between("growth of errors on unseen samples, told over measured: largest", max(told), 0.7, 1.4),
    ]


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a layer and width."""
    table = Table(title="Squared error of the output on unseen samples, relative to the output")
    titles = ("layer", "bits", "grid", "error", "on fitted", "growth told")
    for title in (*titles, "grid of all", "error of all", "seconds", "seconds of all"):
        table.add_column(title)
    for row in rows:
        seconds = (f"{row[key]:.2f}" for key in ("processor_seconds", "processor_seconds_of_all"))
        own = (f"{row['error']:.3g}", f"{row['error_on_fitted']:.3g}", f"{row['unseen_told']:.2f}")
        errors = (*own, row["grid_of_all"], f"{row['error_of_all']:.3g}")
        table.add_row(row["layer"], str(row["bits"]), row["grid"], *errors, *seconds)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
