"""Moments of what a layer is called on in the float model and in its rounded copy, of two parts of the data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..network.layer_kinds import row_parts, weight_rows
from ..network.layerwise import Stop
from ..network.own_operation import apply_wrapped, wrapped_class
from ..network.tokens import real_tokens, weights_of_inputs, weights_of_tokens
from ..quantizers.input_moments import gram
from ..quantizers.unfolding import unfolded_chunks
from ..tools.distributed import errors_shared, gather, sum_over_ranks
from .parts_of_batches import PARTS, PartOfBatch


class JointMoment(NamedTuple):
    """Means over rows, with x from the model and z from its copy.

    Attributes:
        own: Mean of z z^T, [groups, columns, columns].
        shift: Mean of (x - z) z^T, of the same shape; where the weight has fewer rows than columns, that of
            W (x - z) z^T, [groups, rows, columns]. None where rows of x and z are not paired.
        rows: Number of rows of z.
    """

    own: Tensor
    shift: Tensor | None
    rows: int

    @classmethod
    def over(cls, parts: list[JointMoment]) -> JointMoment:
        """Return the means over the rows of several parts, in their memory: the list is emptied."""
        rows = max(sum(part.rows for part in parts), 1)
        total = parts.pop(0)
        for mean in total.means():
            mean.mul_(total.rows / rows)
        while parts:
            part = parts.pop(0)
            for mean, other in zip(total.means(), part.means(), strict=True):
                mean.add_(other, alpha=part.rows / rows)
            total = total._replace(rows=total.rows + part.rows)
        return total

    def means(self) -> list[Tensor]:
        """Return the means that are known."""
        return [self.own] if self.shift is None else [self.own, self.shift]

    def pull(self, weights: Tensor, step: int = 1) -> Tensor | None:
        """Return the mean of W (x - z) z^T for every ``step``-th row of a weight, in float32; None if not paired.

        Args:
            weights: W, [groups, rows, columns].
            step: Of the rows of each group.
        """
        if self.shift is None:
            return None
        if is_projected(weights.shape):
            return self.shift[:, ::step].float()
        return weights[:, ::step].float() @ self.shift.float()


def is_projected(shape: torch.Size) -> bool:
    """Tell whether moments keep what the weight makes of a shift: that takes less than what the shift is.

    Args:
        shape: Of the weight, [groups, rows, columns].
    """
    return shape[1] < shape[2]


class JointMoments(NamedTuple):
    """What a layer is rounded by, over all processes.

    Attributes:
        parts: Those of two parts of the samples; of fewer where only one part had rows, of none where none had.
        paired: Whether rows of the model and its copy are those of the same samples and positions.
    """

    parts: list[JointMoment]
    paired: bool


def joint_moments(
    module: nn.Module, floats: Iterable[Stop | None], twins: Iterable[Stop | None], places: Sequence[PartOfBatch]
) -> JointMoments:
    """Return the moments over all batches, of the model and its copy.

    Rows are paired by their place, and so only where both passes took the same route with every batch.

    Args:
        module: The layer.
        floats: Where the model's passes stop, batch by batch.
        twins: Where those of the copy do.
        places: Where the samples of each batch belong.
    """
    weights = weight_rows(module).detach().unflatten(0, (row_parts(module), -1))
    columns = weights.shape[2]
    wide = torch.float32 if weights.device.type == "mps" else torch.float64
    sizes = (columns, weights.shape[1] if is_projected(weights.shape) else columns)
    own, shift = (
        [torch.zeros(len(weights), size, columns, dtype=wide, device=weights.device) for _ in range(PARTS)]
        for size in sizes
    )
    counts, paired = [0] * PARTS, True
    with errors_shared():
        for with_x, with_z, place in zip(floats, twins, places, strict=True):
            paired = paired and (with_x and with_x.route) == (with_z and with_z.route)
            known = with_x.output.shape if with_x is not None and isinstance(with_x.output, Tensor) else None
            roots = _roots(module, with_x if paired else with_z, place)
            xs = _chunks(module, with_x, known, place, roots) if paired else repeat((0, None))
            zs = _chunks(module, with_z, known if paired else None, place, roots)
            for (part, z), (_, x) in zip(zs, xs, strict=paired):
                own[part] += gram(z)
                counts[part] += z.shape[1]
                if x is not None:
                    shifted = x - z
                    if is_projected(weights.shape):
                        shifted = shifted @ weights.to(z.dtype).mT
                    shift[part] += shifted.mT @ z
    paired = all(gather(paired))
    rows = [sum(of_ranks) for of_ranks in zip(*gather(counts), strict=True)]
    own = [sum_over_ranks(sums) for sums in own]
    shift = [sum_over_ranks(sums) for sums in shift] if paired else []
    for sums in (own, shift):
        for count, total in zip(rows, sums, strict=False):
            total /= max(count, 1)
    parts = [JointMoment(own[p], shift[p] if paired else None, rows[p]) for p in range(PARTS) if rows[p]]
    return JointMoments(parts, paired)


def _chunks(
    module: nn.Module, stop: Stop | None, output_shape: torch.Size | None, place: PartOfBatch, roots: dict[int, Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Yield parts and the vectors in them that the weight is multiplied with at a stop; none without one.

    Args:
        module: The layer.
        stop: Where a pass waits.
        output_shape: Of what the layer returns; None where it takes one more call to know.
        place: Where the samples of the batch belong.
        roots: What the vectors of each part are multiplied by, [vectors]; of a part that is not there, nothing.
    """
    if stop is None:
        return
    shape = _product(module, stop.inputs).shape if output_shape is None else output_shape
    for part, inputs in place.pieces(stop.inputs):
        done = 0
        for vectors in unfolded_chunks(module, inputs, shape):
            if part in roots:
                vectors = vectors * roots[part][done : done + vectors.shape[1], None].to(vectors)
                done += vectors.shape[1]
            yield part, vectors


def _product(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what a layer makes of the inputs of its operation, whatever it does with it afterwards."""
    kind = wrapped_class(module)
    if kind is None:
        return type(module).forward(module, inputs)
    assert isinstance(module.weight, Tensor)
    return apply_wrapped(module, kind, module.weight, inputs)


def _roots(module: nn.Module, stop: Stop | None, place: PartOfBatch) -> dict[int, Tensor]:
    """Return the root of what each vector counts, by part; nothing where all count alike.

    Of a linear layer, tokens whose outputs are above the median size count less, see `weights_of_inputs`. What it has
    returned need not be computed again.
    """
    if stop is None or not isinstance(module, nn.Linear):
        return {}
    if isinstance(stop.output, Tensor) and type(module).forward is nn.Linear.forward:
        outputs = real_tokens(stop.output, stop.mask)
        weights = (
            (part, weights_of_tokens(rows.reshape(-1, rows.shape[-1]), most=1.0))
            for part, rows in place.pieces(outputs)
        )
    else:
        inputs = place.pieces(stop.inputs)
        weights = ((part, weights_of_inputs(module, rows.reshape(-1, rows.shape[-1]))) for part, rows in inputs)
    return {part: of_rows.sqrt() for part, of_rows in weights}
