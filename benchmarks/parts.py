"""Long benchmarks in parts: each part's rows are kept on disk, so that a run can be stopped, resumed and split."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning_mpq.tools.files import write_text_atomically

from .networks import EPOCHS

Rows = list[dict[str, Any]]
FOLDER = Path("outputs/parts")
LEFT_OUT: list[str] = []
"""Parts that were asked for, are not there and were not measured."""


def parser_of(benchmark: str, description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what all long benchmarks on trained networks are asked: data, what is known, where to write.

    Args:
        benchmark: Name of the benchmark.
        description: What ``--help`` begins with.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the four IDX files of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the float training")
    parser.add_argument("--known", action="store_true", help="only collect the parts that are there; skip the others")
    parser.add_argument("--output", type=Path, help=f"file to write; default benchmarks/results/{benchmark}.json")
    return parser


def settings_of(arguments: argparse.Namespace, *others: str) -> dict[str, Any]:
    """Return what a benchmark was asked, without paths, ``--known`` and the arguments that are named."""
    return {key: value for key, value in vars(arguments).items() if key not in ("root", "known", "output", *others)}


def part(
    benchmark: str,
    name: str,
    measure: Callable[[], Iterable[dict[str, Any]]],
    folder: Path = FOLDER,
    only_known: bool = False,
) -> Rows:
    """Return the rows of a part, measured now unless an earlier run has kept them.

    Args:
        benchmark: Name of the benchmark.
        name: What tells this part from others: network, seed, epochs.
        measure: Yields the rows.
        folder: Where parts are kept; delete a file to measure its part again.
        only_known: Measure nothing; no rows then, unless an earlier run has kept them.
    """
    path = folder / benchmark / f"{name}.json"
    if path.exists():
        print(f"{benchmark} {name}: kept in {path}", flush=True)
        kept: Rows = json.loads(path.read_text())
        return kept
    rows: Rows = []
    if only_known:
        LEFT_OUT.append(f"{benchmark} {name}: not measured")
        return rows
    for row in measure():
        rows.append(row)
        print(f"{benchmark} {name}:", row, flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(path, json.dumps(rows, indent=1))
    return rows
