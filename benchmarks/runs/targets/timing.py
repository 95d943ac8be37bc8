"""Processor time of ways to compute one thing, run in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Run = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""Computes the output of a batch."""


def milliseconds(runs: Mapping[str, Run], inputs: npt.NDArray[Any], repeats: int) -> dict[str, float]:
    """Return milliseconds of processor time, the least of several runs in turns; one more before them is not counted.

    Args:
        runs: Name to what is timed.
        inputs: What each is given.
        repeats: How often each is run.
    """
    found: dict[str, list[float]] = {way: [] for way in runs}
    for number in range(repeats + 1):
        for way, run in runs.items():
            start = time.process_time()
            run(inputs)
            if number:
                found[way].append(1000 * (time.process_time() - start))
    return {way: min(times) for way, times in found.items()}


def outputs(run: Run, inputs: npt.NDArray[Any], size: int = 16) -> npt.NDArray[Any]:
    """Return the outputs of all samples, so many at once, which must divide them."""
    return np.concatenate([run(part) for part in np.split(inputs, len(inputs) // size)])
