"""What a kernel is given: one packed weight as rows by columns, with everything needed to read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...grids.base import IntegerForm
from ...grids.registry import grid_named
from ...quantizers.packing import unpack_codes
from ...quantizers.quantized_rows import dequantize
from ...schemes import WeightScheme


@dataclass(frozen=True)
class PackedMatrix:
    """A packed weight in the stored format.

    Attributes:
        packed_codes: uint8, the codes of all rows as one bit stream.
        scale: [1, 1], [rows, 1] or [rows, blocks].
        zero_point: Shaped like ``scale``, in the grid's type; None unless it stores zero points.
        scheme: Bits, granularity, grid and type of the scales.
        rows: Output features.
        columns: Input features.
    """

    packed_codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    scheme: WeightScheme
    rows: int
    columns: int

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return self.packed_codes.device

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The stored tensors."""
        return tuple(part for part in (self.packed_codes, self.scale, self.zero_point) if part is not None)

    @property
    def integer_form(self) -> IntegerForm:
        """The grid said in integers, which every kernel multiplies by; `prepare_by` asks for no weight without."""
        form = grid_named(self.scheme.grid).integer_form(self.scheme.bits)
        assert form is not None
        return form

    @property
    def block(self) -> int:
        """Columns that share one scale within a row."""
        return min(self.scheme.granularity, self.columns) if isinstance(self.scheme.granularity, int) else self.columns

    def codes(self) -> Tensor:
        """Return the codes, uint8 [rows, columns]."""
        stream = unpack_codes(self.packed_codes, self.scheme.bits, self.rows * self.columns)
        return stream.view(self.rows, self.columns)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight as [rows, columns] in ``dtype``."""
        return dequantize(self.codes(), self.scale, self.zero_point, self.scheme, dtype)

    def signed_codes(self) -> Tensor:
        """Return ``code - 2**(bits - 1)``, int8 [rows, columns]: what zero is on a symmetric grid."""
        return (self.codes().to(torch.int16) - self._middle).to(torch.int8)

    def row_scales(self) -> Tensor:
        """Return the scales of every row, float32 [rows, blocks]."""
        return self.scale.to(torch.float32).expand(self.rows, -1)

    def row_offsets(self) -> Tensor:
        """Return what the signed codes of every row stand above zero by, float32 [rows, blocks].

        A weight is ``scale * (signed code - offset)``: 0 on a symmetric grid, -1/2 on the half grid.
        """
        if self.zero_point is not None:
            return (self.zero_point.to(torch.float32) - self._middle).expand(self.rows, -1)
        form = self.integer_form
        assert form.offset is not None
        offset = form.offset / form.steps - self._middle
        return torch.full_like(self.scale, offset, dtype=torch.float32).expand(self.rows, -1)

    @property
    def _middle(self) -> int:
        return 2 ** (self.scheme.bits - 1)
