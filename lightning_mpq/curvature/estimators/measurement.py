"""What one batch says about candidates, in a form that further candidates can be added to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Measurement:
    """One batch (or chunk of one) as an estimator sees it.

    Curvature is given either by rows, whose inner products it is, or as a matrix.

    Attributes:
        samples: Number of samples.
        rows: [U, r, K]: each unit u is an estimate ``rows_u^T rows_u`` of the curvature; units are the samples, or one
            unit is the whole batch. None for an estimator without rows.
        matrix: [K, K]: the mean over the batch. None with rows.
        gradient: [K]: the mean over the batch. None for the divergence.
    """

    samples: int
    rows: Tensor | None = None
    matrix: Tensor | None = None
    gradient: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        found = (self.rows, self.matrix, self.gradient)
        return sum(tensor.numel() * tensor.element_size() for tensor in found if tensor is not None)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Measurement:
        """Return the same on a device, and in a type."""
        moved = (None if t is None else t.detach().to(device, dtype) for t in (self.rows, self.matrix, self.gradient))
        return Measurement(self.samples, *moved)

    def of(self, columns: Sequence[int]) -> Measurement:
        """Return the same of some candidates only."""
        index = list(columns)
        return Measurement(
            self.samples,
            None if self.rows is None else self.rows[..., index],
            None if self.matrix is None else self.matrix[index][:, index],
            None if self.gradient is None else self.gradient[index],
        )

    def joined(self, own: Sequence[int], other: Measurement, others: Sequence[int]) -> Measurement:
        """Return what this one and another of the same batch say together.

        Args:
            own: Positions of this one's candidates among all K.
            other: What was measured of further candidates; its matrix, if any, is [K', K], along all.
            others: Positions of its candidates.
        """
        count = len(own) + len(others)
        rows = matrix = gradient = None
        if self.rows is not None and other.rows is not None:
            rows = other.rows.new_empty(*other.rows.shape[:2], count)
            rows[..., list(own)] = self.rows.to(rows)
            rows[..., list(others)] = other.rows
        if self.matrix is not None and other.matrix is not None:
            matrix = other.matrix.new_zeros(count, count)
            matrix[list(others)] = other.matrix
            matrix[:, list(others)] = torch.where(
                torch.isin(torch.arange(count), torch.tensor(others))[:, None], matrix[:, list(others)], other.matrix.T
            )
            matrix[torch.tensor(own)[:, None], torch.tensor(own)[None, :]] = self.matrix.to(matrix)
            matrix = (matrix + matrix.T) / 2
        if self.gradient is not None and other.gradient is not None:
            gradient = other.gradient.new_empty(count)
            gradient[list(own)] = self.gradient.to(gradient)
            gradient[list(others)] = other.gradient
        return Measurement(self.samples, rows, matrix, gradient)
