"""CUDA: humming-kernels compile a product for weights of 2 to 8 bits on the spot.

Written from the source of humming-kernels 0.1.19, whose own checks of shapes, types and configurations pass; every
prepared weight is compared with the plain path before it is used, so that a release that means something else by it
is refused rather than believed. Compiling takes CUDA's headers: those of a toolkit, or of ``humming-kernels[cu13]``
(``[cu12]``).
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from .base import Kernel, PreparedLinear, UnsuitableWeightError, bytes_of
from .matrix import PackedMatrix

LOCKS = 2048
"""Counters that thread blocks meet at, as many as humming's own layer has; each weight needs its own."""
ROWS_TOGETHER = 128
"""Outputs that its Hopper kernels compute together, twice as many as those for other GPUs; it fills up with zeros."""
ALIGNMENT = 16
"""Bytes that inputs must start at a multiple of."""


class HummingKernel(Kernel):
    """``humming_forward`` of humming-kernels: ``(code - zero point) * scale``, codes unsigned, the zero point floating.

    Without a zero point the middle code stands for zero, as it does on the symmetric grid.
    """

    name = "humming"

    def why_not(self, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
        """See `Kernel.why_not`."""
        if matrix.device.type != "cuda":
            return f"works on a CUDA device, and the weight is on {matrix.device.type}"
        if dtype not in (torch.float16, torch.bfloat16):
            return f"computes in float16 or bfloat16, and the layer in {dtype}"
        capability = torch.cuda.get_device_capability(matrix.device)
        if capability < ((8, 0) if dtype == torch.bfloat16 else (7, 5)):
            return f"needs a later GPU for {dtype} than one of compute capability {capability[0]}.{capability[1]}"
        if find_spec("humming") is None:
            return "needs the package humming-kernels: pip install 'lightning_mpq[cuda-kernels]'"
        if matrix.rows % 8 or matrix.columns % 32:
            return f"takes multiples of 8 outputs and 32 inputs, and the layer has {matrix.rows} and {matrix.columns}"
        if matrix.block % 32 or matrix.columns % matrix.block:
            return f"takes blocks that are multiples of 32 columns and divide a row, and these are of {matrix.block}"
        return None

    def prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        """See `Kernel.prepare`."""
        with torch.cuda.device(matrix.device):  # humming looks at the current device
            return self._prepare(matrix, dtype)

    def _prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        from humming import ops
        from humming.forward import humming_forward
        from humming.schema import HummingWeightSchema
        from humming.transform import prepare_and_transform_humming_tensors

        bits, rows, columns = matrix.scheme.bits, matrix.rows, matrix.columns
        scales = matrix.row_scales().to(dtype).contiguous()
        if not torch.equal(scales.to(torch.float32), matrix.row_scales()):
            raise UnsuitableWeightError(f"takes scales in {dtype}, which would round these")
        shifted = matrix.zero_point is not None or matrix.integer_form.steps > 1
        schema = HummingWeightSchema(
            b_dtype=f"uint{bits}",
            weight_scale_group_size=0 if matrix.block == columns else matrix.block,
            has_zero_point=shifted,
            is_fp_zero_point=shifted,
        )
        tensors = {
            "weight": ops.pack_weight(matrix.codes().to(torch.int32).contiguous(), bits),
            "weight_scale": scales,
        }
        if shifted:  # at most 255 in halves: exact in bfloat16 as well
            tensors["zero_point"] = (matrix.row_offsets() + 2 ** (bits - 1)).to(dtype).contiguous()
        config, ready = prepare_and_transform_humming_tensors(
            tensors, rows, columns, schema, pad_n_to_multiple=ROWS_TOGETHER, torch_dtype=dtype, device=matrix.device
        )
        locks = torch.zeros(LOCKS, dtype=torch.int32, device=matrix.device)

        def linear(inputs: Tensor, bias: Tensor | None) -> Tensor:
            if inputs.data_ptr() % ALIGNMENT:  # a view that starts in the middle of a tensor
                inputs = inputs.clone()
            result = humming_forward(config, inputs=inputs, locks=locks, **ready)
            return result if bias is None else result.add_(bias)

        return PreparedLinear(self.name, linear, bytes_of(locks, *ready.values()))
