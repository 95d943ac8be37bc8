"""All ways to run a model at one width and batch, timed in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

import torch
from torch import nn

from ...methods.inference import Way, float_ways, onnxruntime_ways, packed_ways, torchao_way
from ...problems.inference_models import make_inputs, make_model, packed_model
from ...tools.memory import transient_bytes
from ...tools.results import Row

UNCOUNTED, COUNTED = 3, 8
"""Calls of a way in each of its turns: the first find other weights in the cache and the threads asleep."""


@torch.no_grad()
def measure(name: str, batch: int, bits: int, seconds: float, threads: int) -> list[Row]:
    """Return one row for each way to run a model at a batch and a width, and one for each way that cannot run it."""
    skipped: list[str] = []
    model, packed = models(name, bits)
    inputs = make_inputs(name, batch)
    ways = [
        *float_ways(model, inputs),
        *packed_ways(packed, bits, inputs, skipped),
        *torchao_way(model, bits, inputs, skipped),
        *onnxruntime_ways(packed, bits, inputs, threads, skipped),
    ]
    times = time_in_turns(ways, seconds)
    rows: list[Row] = []
    for way in ways:
        transient = transient_bytes(way.call)
        known = transient is not None and way.held is not None
        rows.append(
            {
                "model": name,
                "bits": bits,
                "batch": batch,
                "way": way.name,
                "stored_bytes": way.stored,
                "held_bytes": way.held,
                "peak_bytes": (way.held or 0) + (transient or 0) if known else None,
                "microseconds": round(times[way.name] * 1e6, 1),
                "over_float32": round(times["float32"] / times[way.name], 3),
                "over_bfloat16": round(times["bfloat16"] / times[way.name], 3),
                "relative_error": way.error,
                "note": way.note,
            }
        )
    return [*rows, *({"skipped": reason} for reason in skipped)]


@lru_cache(maxsize=1)
def models(name: str, bits: int) -> tuple[nn.Module, nn.Module]:
    """Return the float model and the packed one, which batches of different sizes share."""
    model = make_model(name)
    return model, packed_model(model, bits)


def time_in_turns(ways: Sequence[Way], seconds: float) -> dict[str, float]:
    """Call all ways in turns, each several times, until ``seconds`` have passed for each on average.

    Args:
        ways: What is timed.
        seconds: Time spent on each; every way has at least three turns.

    Returns:
        Name to the median time of a call in seconds.
    """
    times: dict[str, list[float]] = {way.name: [] for way in ways}
    end = time.perf_counter() + seconds * len(ways)
    turns = 0
    while turns < 3 or time.perf_counter() < end:
        turns += 1
        for way in ways:
            for _ in range(UNCOUNTED):
                way.call()
            for _ in range(COUNTED):
                start = time.perf_counter()
                way.call()
                times[way.name].append(time.perf_counter() - start)
    return {name: median(taken) for name, taken in times.items()}
