"""CPU, bfloat16: torch's own products with int4 and int8 weights; in float32 they are slower than a plain product."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .base import Kernel, PreparedLinear, bytes_of
from .matrix import PackedMatrix

INT4_BLOCKS = (256, 128, 64, 32)
"""Columns that may share a scale in torch's int4 layout."""


def _why_not_bfloat16(matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
    if matrix.device.type != "cpu":
        return f"works on the CPU, and the weight is on {matrix.device.type}"
    if dtype != torch.bfloat16:
        return f"is slower than a plain product but in bfloat16, and the layer computes in {dtype}"
    if matrix.scheme.scale_dtype != "bfloat16":
        return f"takes scales in bfloat16, and these are in {matrix.scheme.scale_dtype}"
    return None


class TorchInt8Kernel(Kernel):
    """``aten::_weight_int8pack_mm``: a byte for each weight and one scale per row.

    Odd multiples of half a scale hold the half grid, so that up to 7 bits nothing is rounded. Sizes that are no
    multiples of 16 outputs and 32 inputs, at which it reads beyond the weight, are filled up with zeros.
    """

    name = "torch-int8"

    def why_not(self, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
        """See `Kernel.why_not`."""
        if reason := _why_not_bfloat16(matrix, dtype):
            return reason
        if matrix.block < matrix.columns:
            return "takes one scale per row, and these are per block"
        if not matrix.integer_form.fits_signed(matrix.scheme.bits, 8):
            return f"takes int8, which {matrix.scheme} does not fit"
        return None

    def prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        """See `Kernel.prepare`."""
        steps = matrix.integer_form.steps
        levels = (matrix.signed_codes().to(torch.float32) - matrix.row_offsets()) * steps
        rows, more_rows, more_columns = matrix.rows, -matrix.rows % 16, -matrix.columns % 32
        weight = pad(levels.to(torch.int8), (0, more_columns, 0, more_rows)).contiguous()
        scales = pad((matrix.row_scales()[:, 0] / steps).to(torch.bfloat16), (0, more_rows)).contiguous()

        def linear(inputs: Tensor, bias: Tensor | None) -> Tensor:
            filled = pad(inputs, (0, more_columns)) if more_columns else inputs
            result = torch.ops.aten._weight_int8pack_mm(filled, weight, scales)
            if more_rows:
                result = result[:, :rows].contiguous()
            return result if bias is None else result.add_(bias)

        return PreparedLinear(self.name, linear, bytes_of(weight, scales))


class TorchInt4Kernel(Kernel):
    """``aten::_weight_int4pack_mm_for_cpu``: half a byte for each weight of up to 4 bits.

    A weight there is ``(code - 8) * scale + shift``; half a scale as the shift gives the half grid.
    """

    name = "torch-int4"

    def why_not(self, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
        """See `Kernel.why_not`."""
        if reason := _why_not_bfloat16(matrix, dtype):
            return reason
        if matrix.scheme.bits > 4:
            return f"takes up to 4 bits, and these are {matrix.scheme.bits}"
        if matrix.zero_point is not None:
            return "takes shifts in bfloat16, which would round zero points"
        if matrix.rows % 16 or matrix.columns % 32:
            return f"takes multiples of 16 outputs and 32 inputs, and the layer has {matrix.rows} and {matrix.columns}"
        if not self._block(matrix):
            return f"takes blocks that are multiples of 32 columns and divide a row, and these are of {matrix.block}"
        return None

    def prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        """See `Kernel.prepare`."""
        block = self._block(matrix)
        codes = matrix.signed_codes().to(torch.int32) + 8
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        scales = matrix.row_scales()
        both = torch.stack([scales, -scales * matrix.row_offsets()], dim=2).to(torch.bfloat16)
        table = both.repeat_interleave(matrix.block // block, dim=1).transpose(0, 1).contiguous()  # [blocks, rows, 2]

        def linear(inputs: Tensor, bias: Tensor | None) -> Tensor:
            result = torch.ops.aten._weight_int4pack_mm_for_cpu(inputs, packed, block, table)
            return result if bias is None else result.add_(bias)

        return PreparedLinear(self.name, linear, bytes_of(packed, table))

    @staticmethod
    def _block(matrix: PackedMatrix) -> int:
        """Return the longest block of torch's that divides the scheme's and the row; 0 if there is none."""
        fits = (size for size in INT4_BLOCKS if matrix.block % size == 0 and matrix.columns % matrix.block == 0)
        return next(fits, 0)
