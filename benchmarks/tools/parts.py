"""Long benchmarks in parts: each part's rows are kept on disk, so that a run can be stopped, resumed and split."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lightning_mpq.tools.files import write_text_atomically

from .results import Row

FOLDER = Path("outputs/parts")


@dataclass
class Parts:
    """The parts of one benchmark.

    Attributes:
        benchmark: Its name.
        only_known: Whether parts that are not there are left out instead of measured.
        folder: Where parts are kept; delete a file to measure its part again. None keeps nothing.
        left_out: Parts that were asked for, are not there and were not measured.
    """

    benchmark: str
    only_known: bool = False
    folder: Path | None = FOLDER
    left_out: list[str] = field(default_factory=list)

    def rows(self, name: str, measure: Callable[[], Iterable[Row]]) -> list[Row]:
        """Return the rows of a part, measured now unless an earlier run has kept them.

        Args:
            name: What tells this part from others: network, seed, epochs.
            measure: Yields the rows.
        """
        path = None if self.folder is None else self.folder / self.benchmark / f"{name}.json"
        if path is not None and path.exists():
            print(f"{self.benchmark} {name}: kept in {path}", flush=True)
            kept: list[Row] = json.loads(path.read_text())
            return kept
        if self.only_known:
            self.left_out.append(f"{name}: not measured")
            return []
        rows: list[Row] = []
        for row in measure():
            rows.append(row)
            print(f"{self.benchmark} {name}:", row, flush=True)
        if path is not None:
            write_text_atomically(path, json.dumps(rows, indent=1))
        return rows
