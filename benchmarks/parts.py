"""Long benchmarks in parts: each part's rows are kept on disk, so that a run can be stopped, resumed and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning_mpq.files import write_text_atomically

Rows = list[dict[str, Any]]
FOLDER = Path("outputs/parts")
LEFT_OUT: list[str] = []
"""Parts that were asked for, are not there and were not measured."""


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
