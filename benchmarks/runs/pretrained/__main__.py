"""Three pretrained networks, quantized on few samples and measured on others.

Sentence encoder MiniLM (22 M weights), EfficientNet-Lite0 (4.6 M) and SmolLM2-135M, from packages; see
`benchmarks.recorded_instances.pretrained`. A network whose packages are missing is left out, and the result says so.

    python -m benchmarks.runs.pretrained minilm efficientnet_lite0 --texts FOLDER --samples 128 512 --budgets 3 4
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from ...problems.subjects import subject
from ...recorded_instances.pretrained import NETWORKS
from ...tools.parts import Parts
from ...tools.quality import BETTER_ABOVE, BETTER_BELOW
from ...tools.results import Row
from ..arguments import parsed, parser_of, parts_of, settings_of
from ..ending import conclude
from .measuring import WITHOUT, measure
from .targets import targets

KEYS = ("version", "network", "samples", "budget", "without")
FIGURES = (*BETTER_ABOVE, *BETTER_BELOW)


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("pretrained", __doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help=f"of {', '.join(NETWORKS)}; default all")
    parser.add_argument("--texts", type=Path, help="folder of html files, for the two language models")
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 128, 512, 1024], help="calibration samples")
    parser.add_argument("--budgets", type=float, nargs="+", default=[2.5, 3.0, 3.5, 4.0], help="average bits")
    parser.add_argument(
        "--without", nargs="+", choices=list(WITHOUT), default=["nothing"], help="default steps to switch off"
    )
    parser.add_argument("--version", default="now", help="name of the version of the package that is measured")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there, of all versions")
    arguments = parsed(parser, words, networks=["made_up"], samples=[64], budgets=[4.0])
    if unknown := [name for name in arguments.networks if name not in (*NETWORKS, "made_up")]:
        parser.error(f"unknown network {unknown[0]!r}; expected some of {', '.join(NETWORKS)}.")
    if arguments.texts is None and not arguments.known and {"minilm", "smollm2"} & set(arguments.networks):
        parser.error("--texts=FOLDER is needed, with html files of at least 1,400 paragraphs.")
    parts = parts_of(arguments)
    rows = known_rows(parts) if arguments.known else []
    for name, samples in [] if arguments.known else product(arguments.networks, arguments.samples):
        rows += rows_of(parts, name, samples, arguments)
    if arguments.known:
        for name, key in (("networks", "network"), ("samples", "samples"), ("budgets", "budget")):
            setattr(arguments, name, sorted({row[key] for row in rows}))  # what was measured, whatever was asked for
        parts.left_out += [f"{name}: not measured" for name in NETWORKS if name not in arguments.networks]
    print_table(rows)
    reached = targets(rows)
    conclude(
        arguments,
        rows,
        reached,
        {**settings_of(arguments, "texts", "without", "version"), "skipped": parts.left_out},
        packages=("torch", "transformers", "numpy", "scipy", "mip", "highspy"),
    )


def rows_of(parts: Parts, name: str, samples: int, arguments: argparse.Namespace) -> list[Row]:
    """Return the rows of a network and a number of samples; none where a package is missing."""
    try:
        loaded = subject(name, arguments.texts, samples)
    except ImportError as error:
        parts.left_out.append(f"{name}: {error}")
        print(f"{name} is left out: {error}. See benchmarks/recorded_instances/pretrained.py for its packages.")
        return []
    rows: list[Row] = []
    with TemporaryDirectory() as cache:
        for budget, without in product(arguments.budgets, arguments.without):
            keys = dict(zip(KEYS, (arguments.version, name, samples, budget, without), strict=True))

            def measured(keys: Row = keys) -> Iterator[Row]:
                torch.manual_seed(0)
                for row in measure(loaded, keys["budget"], keys["without"], Path(cache)):
                    yield {**keys, **row}

            rows += map(with_all_figures, parts.rows("-".join(map(str, keys.values())), measured))
    return rows


def with_all_figures(row: Row) -> Row:
    """Return a row with those figures too that are not those of its network, None."""
    return {**{key: row[key] for key in KEYS}, **dict.fromkeys(FIGURES), **row}


def known_rows(parts: Parts) -> list[Row]:
    """Return the rows of every part that was measured, in the order of their keys."""
    assert parts.folder is not None
    found = [row for path in (parts.folder / parts.benchmark).glob("*.json") for row in json.loads(path.read_text())]
    return sorted(map(with_all_figures, found), key=lambda row: tuple(row[key] for key in KEYS))


def print_table(rows: Sequence[Row]) -> None:
    """Print one line a model."""
    figures = [key for key in FIGURES if any(row[key] is not None for row in rows)]
    losses = ("predicted_loss", "calibration_loss", "held_out_loss", "unseen_loss")
    table = Table(title="Losses are divergences from the float model in nats per sample")
    for title in (*KEYS, "model", "stored_bytes", *losses, *figures):
        table.add_column(title.replace("_", " "))
    for row in rows:
        numbers = ("-" if row.get(key) is None else f"{row[key]:.4g}" for key in (*losses, *figures))
        table.add_row(*(str(row[key]) for key in (*KEYS, "model")), f"{row['stored_bytes']:,}", *numbers)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
