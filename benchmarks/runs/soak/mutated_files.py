"""Mutated files: none may crash, hang, be taken for whole, or end in an exception that nobody was told of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from ...tools.results import Row
from .loaders import Loader, loaders
from .processes import in_process

_TOGETHER = 20
"""Files that one process tries; each gets a process of its own where one of them raises, crashes or hangs."""


def mutated_files(folder: Path, count: int, seed: int, progress: Callable[[str], None]) -> list[Row]:
    """Try a number of mutated files, spread over all loaders; return a row for each loader."""
    random, found = Random(seed), loaders(folder)
    shares = [count // len(found) + (number < count % len(found)) for number in range(len(found))]
    rows = []
    for loader, share in zip(found, shares, strict=True):
        rows.append(_row(loader, share, random))
        progress(f"{rows[-1]['what']}: {rows[-1]['tried']} tried, {rows[-1]['faults']} faults")
    return rows


def _row(loader: Loader, count: int, random: Random) -> Row:
    content = loader.path.read_bytes()
    state, expected = in_process(loader.load)
    assert state == "returned", (loader.name, state, expected)
    outcomes, faults = Counter[str](), []
    mutated = [random.choice(loader.mutations)(content, random) for _ in range(count)]
    for start in range(0, count, _TOGETHER):
        together = mutated[start : start + _TOGETHER]
        state, found = in_process(partial(_all_tried, loader, content, together))
        if state == "returned" and len(found) == len(together):
            ended = [("returned", outcome) for outcome in found]
        else:  # which of them was it?
            ended = [in_process(partial(_tried, loader, content, each)) for each in together]
            loader.path.write_bytes(content)
        for each, end in zip(together, ended, strict=True):
            outcome, fault = _judged(end, expected, each == content)
            outcomes[outcome] += 1
            faults += [fault] if fault else []
    return {
        "campaign": "mutated files",
        "what": loader.name,
        "tried": count,
        "faults": len(faults),
        "outcomes": dict(outcomes),
        "first_fault": faults[0] if faults else None,
    }


def _all_tried(loader: Loader, content: bytes, mutated: Sequence[bytes]) -> list[Any]:
    return [_tried(loader, content, each) for each in mutated]


def _tried(loader: Loader, content: bytes, mutated: bytes) -> Any:
    """Read a mutated file in the place of the one that was written."""
    try:
        loader.path.write_bytes(mutated)
        return "value", loader.load()
    except loader.documented as error:
        return "refused", type(error).__name__
    finally:
        loader.path.write_bytes(content)


def _judged(ended: tuple[str, Any], expected: Any, same: bool) -> tuple[str, str | None]:
    """Return what happened in a word, and what is wrong with that, if anything."""
    state, value = ended
    if state != "returned":
        return state, f"{state}: {value}"
    kind, found = value
    if kind == "refused":
        return "refused", None
    if expected is None:
        return "read", None
    if same or found == expected:
        return "read as it was written", None
    return "read otherwise", "other numbers than were written, without a word"
