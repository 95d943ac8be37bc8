r"""Second moment of what a layer's weight is multiplied with: M = mean of x x^T, the curvature of its output error.

An error E of a weight, seen as rows by columns, changes the layer's output by E x at each position, so that the
mean squared change is tr(E M E^T). Rounding by that form instead of by the size of E is what clip search and error
feedback have in common (M. Nagel et al., "Up or Down?", ICML 2020, arXiv:2004.10568, eq. 11).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..network.layer_kinds import kind_of, row_parts, rows_and_columns
from ..tools.distributed import sum_over_ranks
from .ledoit_wolf import UNKNOWN, Spread
from .unfolding import unfolded_chunks
from .unseen_error import unseen_error

_STRIP = 192
"""Columns of a product that are computed at once."""


@dataclass
class InputMoment:
    """Sums of x and x x^T over samples and positions, for each convolution group on its own.

    They are kept in float64: float32 loses what distinguishes inputs with a large mean after some 10^5 positions.

    Attributes:
        first: [groups, columns], the sum of x.
        second: [groups, columns, columns], the sum of x x^T; [groups, columns] if it is a diagonal.
        count: Samples times positions.
        row_counts: [rows], how often each row of an embedding was looked up; None for other layers. Its rows,
            not its columns, are what the input selects: the squared error of row v counts ``row_counts[v]`` times.
        part_counts: [groups], the count of each block of rows where blocks may be used apart, as the projections of
            queries, keys and values are; None where all are always used together.
        spread: How far ``second`` differs from batch to batch; None where it is a diagonal.
        half: What every other batch added to ``second``, in float32: the two parts of the samples can judge each other.
            None where ``second`` is a diagonal.
    """

    first: Tensor
    second: Tensor
    count: int = 0
    row_counts: Tensor | None = None
    part_counts: Tensor | None = None
    spread: Spread | None = None
    half: Tensor | None = None

    @classmethod
    def of_layer(cls, module: nn.Module) -> InputMoment:
        """Return empty sums for a layer, on the device of its weight.

        They take 12 bytes times columns squared times convolution groups.
        """
        weight = module.weight
        assert isinstance(weight, Tensor)
        rows, columns = rows_and_columns(module)
        kind, groups = kind_of(module), row_parts(module)
        wide = torch.float32 if weight.device.type == "mps" else torch.float64  # MPS has no float64
        first = torch.zeros(groups, columns, dtype=wide, device=weight.device)
        if kind is not None and kind.operation == "lookup":
            return cls(first, first.clone(), 0, torch.zeros(rows, dtype=wide, device=weight.device))
        apart = kind is not None and kind.parts > 1
        second = torch.zeros(groups, columns, columns, dtype=wide, device=weight.device)
        part_counts = first.new_zeros(groups) if apart else None
        spread, half = Spread.zero(second), torch.zeros_like(second, dtype=torch.float32)
        return cls(first, second, part_counts=part_counts, spread=spread, half=half)

    @staticmethod
    def bytes_of_layer(module: nn.Module) -> int:
        """Return what `of_layer` takes, without making it."""
        matrix, kind = InputMoment.bytes_of_matrix(module), kind_of(module)
        return matrix if kind is not None and kind.operation == "lookup" else matrix * 3 // 2

    @staticmethod
    def bytes_of_matrix(module: nn.Module) -> int:
        """Return what one matrix of its size takes: its mean, or a factor of it."""
        kind, columns = kind_of(module), rows_and_columns(module)[1]
        return 8 * columns * (1 if kind is not None and kind.operation == "lookup" else columns * row_parts(module))

    def update(
        self,
        module: nn.Module,
        inputs: Tensor,
        output_shape: torch.Size,
        rows: slice | None = None,
        *,
        turn: int = 0,
        halved: bool = False,
    ) -> None:
        """Add one call of the layer.

        Args:
            module: The layer.
            inputs: What it was called on.
            output_shape: Shape of what it returned.
            rows: Which rows of the weight were used, whole blocks of them; None for all.
            turn: Number of the batch: every other one belongs to ``half``.
            halved: Whether to compare the two halves of the samples, for batches that may be alone.
        """
        inputs = inputs.detach()
        if not inputs.numel():  # an expert that no token meets
            return
        if self.row_counts is not None:
            self.row_counts += torch.bincount(inputs.reshape(-1), minlength=len(self.row_counts))
            self.count += inputs.numel()
            self.second += inputs.numel()
            return
        parts = slice(None)
        if rows is not None and self.part_counts is not None:
            height = rows_and_columns(module)[0] // len(self.part_counts)
            parts = slice(rows.start // height, rows.stop // height)
        for number, values in enumerate(unfolded_chunks(module, inputs, output_shape, 2 if halved else 1)):
            # Products are summed in float32 within a chunk, where their spread is small, and in float64 beyond.
            unit = values.abs().amax().clamp(min=torch.finfo(values.dtype).tiny)  # squares must not overflow
            values = values / unit
            product = gram(values).to(self.second.dtype).mul_(unit.to(self.second.dtype) ** 2)
            self.second[parts] += product
            if self.half is not None and (turn + number) % 2 == 0:
                self.half[parts] += product
            if self.spread is not None:
                self.spread.add(parts, product, values.shape[1])
            self.first[parts] += values.sum(1, dtype=self.first.dtype) * unit.to(self.first.dtype)
            self.count += values.shape[1]
            if self.part_counts is not None:
                self.part_counts[parts] += values.shape[1]

    def add(self, other: InputMoment) -> None:
        """Add the sums of the same kind of layer, in place."""
        self.first += other.first
        self.second += other.second
        self.count += other.count
        if self.spread is not None and other.spread is not None:
            self.spread = self.spread.plus(other.spread)
        if self.half is not None and other.half is not None:
            self.half += other.half

    def merge(self, other: InputMoment) -> InputMoment:
        """Return the moment of a weight that two layers share.

        Where an embedding shares its weight with a linear layer, its look-ups count for every row alike.
        """
        if self.row_counts is not None and other.row_counts is not None:
            first, second, counts = self.first + other.first, self.second + other.second, self.row_counts
            return InputMoment(first, second, self.count + other.count, counts + other.row_counts)
        if self.row_counts is not None:
            return other.merge(self)
        second = other.second
        if other.row_counts is not None:  # each row is looked up count / rows times on average
            second = torch.diag_embed(other.second / len(other.row_counts))
        apart = None
        if self.part_counts is not None and other.part_counts is not None:
            apart = self.part_counts + other.part_counts
        spread = None if self.spread is None or other.spread is None else self.spread.plus(other.spread)
        half = None if self.half is None or other.half is None else self.half + other.half
        count = self.count + other.count
        return InputMoment(self.first + other.first, self.second + second, count, None, apart, spread, half)

    def over_ranks(self) -> InputMoment:
        """Return the moment of what all processes saw; every rank must call it, and gets the same bits."""
        counts = None if self.row_counts is None else sum_over_ranks(self.row_counts)
        apart = None if self.part_counts is None else sum_over_ranks(self.part_counts)
        count = int(sum_over_ranks(torch.tensor(self.count)))
        spread = None if self.spread is None else self.spread.over_ranks()
        half = None if self.half is None else sum_over_ranks(self.half)
        return InputMoment(sum_over_ranks(self.first), sum_over_ranks(self.second), count, counts, apart, spread, half)

    def matrix(self, centred: bool = False) -> Tensor:
        """Return M as [groups, columns, columns], the mean of x x^T; zero if the layer was never called.

        Args:
            centred: Subtract the mean of x first. That is the moment that is left when a bias or BatchNorm
                statistics are corrected afterwards, since these absorb every change of the mean output.
        """
        form = self.form(centred)
        return torch.diag_embed(form) if form.dim() == 2 else form

    def form(self, centred: bool = False) -> Tensor:
        """Return M as `matrix` does, or as its diagonal, [groups, columns], where it is one: that of an embedding."""
        if self.second.dim() == 2:
            return self.second / max(self.count, 1)
        count = self._counts().clamp(min=1)
        mean = self.first / count[:, None]
        moment = self.second / count[:, None, None]
        return moment - mean[:, :, None] * mean[:, None, :] if centred else moment

    def damping(self) -> float:
        """Return how much damping the moment should have, in units of the mean of its diagonal."""
        return UNKNOWN if self.spread is None else self.spread.damping(self.form(), self._counts())

    def unseen_error(self, damping: float) -> float:
        """Return the error of the layer's output on unseen samples over that on those that error feedback knew.

        1 where nothing tells it: where the moment is a diagonal, or came from less than two batches.
        """
        if self.half is None:
            return 1.0
        return unseen_error(self.second, self.half, damping)

    def _counts(self) -> Tensor:
        """Return how many rows were seen of each group, [groups]."""
        return self.first.new_full((len(self.first),), self.count) if self.part_counts is None else self.part_counts


def gram(values: Tensor) -> Tensor:
    """Return x^T x of [groups, positions, columns]; of a symmetric product only the upper half is computed, in strips.

    Example:
        >>> gram(torch.tensor([[[1.0, 2.0]]]))
        tensor([[[1., 2.],
                 [2., 4.]]])
    """
    columns = values.shape[2]
    if columns <= _STRIP:
        return values.mT @ values
    product = values.new_empty(len(values), columns, columns)
    for start in range(0, columns, _STRIP):
        strip = values[:, :, start : start + _STRIP].mT @ values[:, :, start:]
        product[:, start : start + _STRIP, start:] = strip
        product[:, start:, start : start + _STRIP] = strip.mT
    return product
