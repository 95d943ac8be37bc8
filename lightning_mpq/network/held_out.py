"""A part of the calibration data that nothing is fitted to, so that it can judge what was fitted to the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from ..tools.distributed import gather, rank, world_size
from .batches import batch_weight, sample_count, slice_batch
from .calibration import Calibration

_SHARE = 5
"""One part of so many is held out."""


class HeldOut(NamedTuple):
    """Calibration data in two parts.

    Attributes:
        fitted: What weights are rounded and repairs are fitted to.
        judging: What neither has seen; None where nothing could be held out.
    """

    fitted: Calibration
    judging: Calibration | None


def hold_out(calibration: Calibration) -> HeldOut:
    """Hold out a fifth of the batches, spread over all; of one to three batches so many samples, the last ones.

    Nothing is held out where a process has a single sample, or a single batch that cannot be cut into samples. Where
    torch.distributed is in use, batches are numbered as a DistributedSampler hands them out, so that the same are held
    out as in one process; where a process would be left without, each holds out a fifth of its own.

    Example:
        >>> import torch
        >>> fitted, judging = hold_out(Calibration(torch.nn.Linear(2, 1), list(torch.ones(10, 4, 2))))
        >>> fitted.samples, judging.samples
        (32, 8)
    """
    batches = list(calibration.filled())
    total = sum(gather(len(batches)))
    kept, held = _by_numbers(batches, range(rank(), total * world_size(), world_size()), total)
    if not all(gather(bool(kept and held))):
        own = len(batches)
        kept, held = _by_numbers(batches, range(own), own) if own > 3 else _by_samples(batches)
    if not all(gather(bool(kept and held))):
        return HeldOut(replace(calibration, batches=batches), None)
    return HeldOut(replace(calibration, batches=kept), replace(calibration, batches=held))


def _by_numbers(batches: list[Any], numbers: range, total: int) -> tuple[list[Any], list[Any]]:
    """Hold out by the numbers that batches have among so many; nothing of one to three."""
    count = round(total / _SHARE) if total > 3 else 0
    held = {(number + 1) * total // count - 1 for number in range(count)}
    kept = [batch for number, batch in zip(numbers, batches, strict=False) if number not in held]
    return kept, [batch for number, batch in zip(numbers, batches, strict=False) if number in held]


def _by_samples(batches: list[Any]) -> tuple[list[Any], list[Any]]:
    """Cut the last batch if need be."""
    if not batches:
        return [], []
    *others, last = batches
    samples, own = sum(map(batch_weight, batches)), sample_count(last)
    count = max(1, round(samples / _SHARE))
    if own is None or count >= own:
        return others, [last]
    return [*others, slice_batch(last, 0, own - count)], [slice_batch(last, own - count, own)]
