"""What memory and time were meant to stay below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

from ...tools.results import Row
from ...tools.targets import Target, at_most

WORK = ("round", "profile", "quantize")
"""Stages that go through weights and tokens."""


def goals(rows: Sequence[Row]) -> list[Target]:
    """Return how all stages of each model stand to their goals.

    Memory: twice the weights (the model itself is one of them), one layer's moment, and what a training step keeps
    beyond the model. Time of the stages that go through weights and tokens: in proportion to these, from each shape to
    the next larger one.
    """
    models = [list(own) for _, own in groupby(rows, key=lambda row: (row["dtype"], row["shape"]))]
    found = [goal for own in models for goal in (*_memory(own), *_estimates(own))]
    by_type = [[own for own in models if own[0]["dtype"] == dtype] for dtype in dict.fromkeys(r["dtype"] for r in rows)]
    for same in by_type:
        for smaller, larger in pairwise(sorted(same, key=lambda own: own[0]["weights"])):
            found += _growth(smaller, larger)
    return found


def _memory(own: Sequence[Row]) -> Iterator[Target]:
    weights, moment = own[0]["weight_bytes"], own[0]["moment_bytes"]
    training = next(row["peak_bytes"] for row in own if row["stage"] == "training step") - weights
    allowed = 2 * weights + moment + training
    largest = max((row for row in own if row["stage"] != "training step"), key=lambda row: row["peak_bytes"])
    name = f"peak memory of a job on {own[0]['shape']} in {own[0]['dtype']} ({largest['stage']}), times the weights"
    yield at_most(name, round(largest["peak_bytes"] / weights, 2), round(allowed / weights, 2))


def _estimates(own: Sequence[Row]) -> Iterator[Target]:
    known = [row for row in own if row["estimated_bytes"]]
    if known:
        error = max(abs(row["estimated_bytes"] / row["peak_bytes"] - 1) for row in known)
        name = f"error of the estimated peak memory of any stage, {own[0]['shape']} in {own[0]['dtype']}"
        yield at_most(name, round(error, 3), 0.2)


def _growth(smaller: Sequence[Row], larger: Sequence[Row]) -> Iterator[Target]:
    def cost(own: Sequence[Row]) -> float:
        work = [row for row in own if row["stage"] in WORK]
        return float(sum(row["ns_a_weight_and_token"] for row in work))

    name = f"CPU time a weight and token, {larger[0]['shape']} over {smaller[0]['shape']} in {larger[0]['dtype']}"
    yield at_most(name, round(cost(larger) / cost(smaller), 3), 1.25)
