"""What rough handling breaks: processes killed at random moments, mutated files, and interrupts.

python -m benchmarks.runs.soak

Needs a system that can fork. Every kill, file and interrupt is in a process of its own; a fault is what was half
written and found whole, what crashes or hangs, an exception that nobody documented, other numbers than before, and
whatever is left behind.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ...tools.results import Row
from ...tools.targets import Target, at_most
from ..arguments import parsed, parser_of, settings_of
from ..ending import conclude
from .interrupts import interrupts
from .kills import kills
from .mutated_files import mutated_files

CAMPAIGNS = {"kills": kills, "mutated files": mutated_files, "interrupts": interrupts}


def main(words: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print and write."""
    parser = parser_of("soak", __doc__)
    parser.add_argument("--kills", type=int, default=444, help="processes that are killed while they write")
    parser.add_argument("--mutated-files", type=int, default=2000, help="files that are mutated and read")
    parser.add_argument("--interrupts", type=int, default=529, help="calls that are interrupted")
    parser.add_argument("--seed", type=int, default=0, help="seed of moments and mutations")
    arguments = parsed(parser, words, kills=6, mutated_files=24, interrupts=8)
    torch.set_num_threads(1)  # threads of torch do not survive a fork
    counts = {
        "kills": arguments.kills,
        "mutated files": arguments.mutated_files,
        "interrupts": arguments.interrupts,
    }
    rows: list[Row] = []
    seconds: dict[str, float] = {}
    with TemporaryDirectory() as folder, _in_silence():
        for name, campaign in CAMPAIGNS.items():
            begin = time.monotonic()
            rows += campaign(Path(folder), counts[name], arguments.seed, lambda said: print(said, flush=True))
            seconds[name] = round(time.monotonic() - begin, 1)
    reached = targets(rows)
    settings = {**settings_of(arguments), "seconds": seconds}
    conclude(arguments, rows, reached, settings)


@contextmanager
def _in_silence() -> Iterator[None]:
    """Keep what thousands of refused files say from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return one target a campaign: no faults."""
    found = []
    for name in CAMPAIGNS:
        own = [row for row in rows if row["campaign"] == name]
        tried = sum(row["tried"] for row in own)
        found.append(at_most(f"faults of {tried} {name}", sum(row["faults"] for row in own), 0, "promise"))
    return found


if __name__ == "__main__":
    main()
