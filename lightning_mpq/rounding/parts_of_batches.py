"""Two parts of the calibration data: what is fitted to one can be judged by the other.

They differ in their samples, never in rows of one sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..network.batches import sample_count
from ..network.tokens import token_mask
from ..tools.distributed import gather, rank, world_size

PARTS = 2


class PartOfBatch(NamedTuple):
    """Where the samples of a batch belong.

    Attributes:
        part: The part of its first samples.
        split: Whether the second half of its samples belongs to the other part.
        samples: How many there are; None if it is not known.
        mask: As `token_mask` returns it.
    """

    part: int
    split: bool
    samples: int | None
    mask: Tensor | None

    def pieces(self, inputs: Tensor) -> list[tuple[int, Tensor]]:
        """Return each part with what a layer was called on in it."""
        if not self.split or self.samples is None:
            return [(self.part, inputs)]
        half = self.samples // 2
        if len(inputs) != self.samples:
            # Hidden tokens have been left out, or nothing says which rows are whose.
            if self.mask is None or len(inputs) != int(self.mask.sum()):
                return [(self.part, inputs)]
            half = int(self.mask[:half].sum())
        return [(self.part, inputs[:half]), (1 - self.part, inputs[half:])]


def parts_of_batches(batches: Sequence[Any]) -> list[PartOfBatch]:
    """Divide batches between two parts; a batch that is alone in all processes is divided by its samples.

    Processes are taken to have drawn the batches by turns, as a distributed sampler lets them.

    Args:
        batches: This process's own; every process must call it.
    """
    alone = sum(gather(len(batches))) == 1
    return [
        PartOfBatch(
            (number * world_size() + rank()) % PARTS, alone, sample_count(batch), token_mask(batch) if alone else None
        )
        for number, batch in enumerate(batches)
    ]
