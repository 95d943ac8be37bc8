"""Processes that are killed while they write: the old files or the new ones are found, whole, and nothing else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

import lightning_mpq as mpq

from ...tools.results import Row
from .model import POLICY, profiled
from .processes import in_process

_WIDTH = 1024
"""Of a layer that takes a while to write."""


@dataclass(frozen=True)
class Writer:
    """Something that writes files.

    Attributes:
        name: What it is.
        folder: Where it writes.
        write: Writes, the first version for False and the second for True.
        read: Returns what one finds.
        kept: The names of the files that belong there, by their beginnings.
    """

    name: str
    folder: Path
    write: Callable[[bool], Any]
    read: Callable[[], Any]
    kept: tuple[str, ...]


def kills(folder: Path, count: int, seed: int, progress: Callable[[str], None]) -> list[Row]:
    """Kill a number of writers, spread over what they write; return a row for each kind."""
    random, found = Random(seed), writers(folder)
    shares = [count // len(found) + (number < count % len(found)) for number in range(len(found))]
    rows = []
    for writer, share in zip(found, shares, strict=True):
        rows.append(_row(writer, share, random))
        progress(f"{rows[-1]['what']}: {rows[-1]['tried']} kills, {rows[-1]['faults']} faults")
    return rows


def writers(folder: Path) -> list[Writer]:
    """Return everything that is to be killed."""
    models = [_packed(seed) for seed in (0, 1)]
    policies = [POLICY, mpq.BitPolicy({"0": mpq.WeightScheme(5)})]
    saved, cache, policy = folder / "killed model", folder / "killed cache", folder / "killed policy"
    for path in (saved, cache, policy):
        path.mkdir()

    def clear_and_profile(second: bool) -> None:
        profiled(cache, (3, 5) if second else (2, 4))

    return [
        Writer(
            "save",
            saved,
            lambda second: mpq.save(models[second], saved),
            lambda: mpq.load(saved, nn.Sequential(nn.Linear(_WIDTH, _WIDTH)))[0].packed_codes[:64].tolist(),
            ("lightning_mpq.json", ".lightning_mpq.lock", "weights-"),
        ),
        Writer(
            "profile with a cache",
            cache,
            clear_and_profile,
            lambda: profiled(cache).curvature.tolist(),
            (),
        ),
        Writer(
            "policy",
            policy,
            lambda second: policies[second].save(policy / "policy.json"),
            lambda: mpq.BitPolicy.load(policy / "policy.json").to_json(),
            ("policy.json",),
        ),
    ]


def _packed(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mpq.quantize(nn.Sequential(nn.Linear(_WIDTH, _WIDTH)), mpq.BitPolicy({"0": mpq.WeightScheme(8)}))


def _row(writer: Writer, count: int, random: Random) -> Row:
    """Kill a writer at random moments, and look at what it left each time."""
    allowed, seconds = [], 0.0
    for second in (True, False):
        _clear(writer)
        begin = time.monotonic()
        state, value = in_process(partial(writer.write, second))
        seconds = time.monotonic() - begin
        assert state == "returned", (writer.name, value)
        allowed.append(in_process(writer.read)[1])
    outcomes, faults = Counter[str](), []
    for number in range(count):
        after = seconds * 1.1 * random.random()
        state, value = in_process(partial(writer.write, number % 2 == 0), after=after)
        outcomes[state] += 1
        if state not in ("killed", "returned"):
            faults.append(f"{state}: {value}")
        state, value = in_process(writer.read)
        if state != "returned" or value not in allowed:
            faults.append(f"after {after:.3f} s one finds: {state} {str(value)[:200]}")
        if not writer.kept:
            _clear(writer)  # what is measured already is not written again
        in_process(partial(writer.write, number % 2 == 1))
        stray = [path.name for path in writer.folder.iterdir() if not _belongs(writer, path.name)]
        if stray:
            faults.append(f"left behind: {stray}")
    return {
        "campaign": "kills",
        "what": writer.name,
        "tried": count,
        "faults": len(faults),
        "outcomes": dict(outcomes),
        "first_fault": faults[0] if faults else None,
    }


def _clear(writer: Writer) -> None:
    """Remove the whole entries of a cache; what a killed process left is for the next writer to remove."""
    for path in writer.folder.glob("*.safetensors") if not writer.kept else ():
        path.unlink()


def _belongs(writer: Writer, name: str) -> bool:
    return name.startswith(writer.kept) if writer.kept else not name.startswith(".")
