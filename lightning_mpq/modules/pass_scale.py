"""From the small batch that a model is tried on to the one asked for: which dimensions grow, and by how much."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from ..network.batches import batch_weight, map_tensors, sample_count, slice_batch, tensors_of

_LONGEST = 127
"""Positions of the pass; what grows with a sequence is told by dimensions of this size or a smaller prime."""
_PRIMES = [n for n in range(2, _LONGEST + 1) if all(n % divisor for divisor in range(2, n))]


@dataclass(frozen=True)
class PassScale:
    """From the batch of the pass to the one that is asked for.

    Attributes:
        samples: Samples that are asked for, by those of the pass.
        positions: Positions of the pass; 0 where the batch is taken as long as it is.
        context: Positions that are asked for.
    """

    samples: float
    positions: int = 0
    context: int = 0

    def elements(self, tensor: Tensor) -> float:
        """Return how many elements a tensor of the pass would have."""
        return self.samples * prod(self.context if size == self.positions else size for size in tensor.shape)

    def bytes(self, tensors: Iterable[Tensor]) -> float:
        """Return how many bytes tensors of the pass would have, those that share memory once."""
        each = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
        return sum(self.elements(tensor) * tensor.element_size() for tensor in each.values())


def piece_of(first: Any, batch: int, context: int | None, sizes: set[int]) -> tuple[Any, PassScale]:
    """Return the batch of a pass, and how it compares with the one that is asked for.

    Args:
        first: A batch.
        batch: Samples that are asked for.
        context: Positions that are asked for; None: those of the batch.
        sizes: Sizes of dimensions that have nothing to do with positions, such as those of weights.

    Raises:
        ValueError: If a context is asked for of a batch without positions.
    """
    if context is None:
        return first, PassScale(batch / max(batch_weight(first), 1))
    tensors = tensors_of(first)
    length = tensors[0].shape[1] if tensors and tensors[0].dim() > 1 else 0
    known = [size for size in _PRIMES if size <= length and size not in sizes]
    if not known or sample_count(first) is None:
        raise ValueError(
            f"context={context} is asked for, but the batches hold no sequences that could be cut: expected tensors "
            "[samples, positions, ...] of at least 2 positions. Leave context out, or give batches of sequences."
        )

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:, : known[-1]] if tensor.dim() > 1 and tensor.shape[1] == length else tensor

    return map_tensors(cut, slice_batch(first, 0, 1)), PassScale(batch, known[-1], context)
