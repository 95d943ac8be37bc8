"""CPU: auto-round-lib multiplies by weights of 2 to 8 bits in their own width."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from .base import Kernel, PreparedLinear, block_sums, bytes_of
from .matrix import PackedMatrix


class AutoRoundKernel(Kernel):
    """``auto_round_kernel.woqgemm`` of auto-round-lib: float32 arithmetic on integer codes.

    It takes signed codes with a scale and an integer zero point per block. On the half grid the zero point
    is -1/2, which it cannot take; the missing ``scale / 2 * (sum of the inputs of a block)`` is added after.
    """

    name = "auto-round"

    def why_not(self, matrix: PackedMatrix, dtype: torch.dtype) -> str | None:
        """See `Kernel.why_not`."""
        if matrix.device.type != "cpu":
            return f"works on the CPU, and the weight is on {matrix.device.type}"
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"computes in float32, and the layer in {dtype}"
        if find_spec("auto_round_kernel") is None:
            return "needs the package auto-round-lib: pip install 'lightning_mpq[cpu-kernels]'"
        try:
            import auto_round_kernel
        except Exception as error:
            return f"could not be imported ({error!r})"
        return None if auto_round_kernel.cpu_lib is not None else "has no library for this processor"

    def prepare(self, matrix: PackedMatrix, dtype: torch.dtype) -> PreparedLinear:
        """See `Kernel.prepare`."""
        import auto_round_kernel as ark

        rows, columns, block = matrix.rows, matrix.columns, matrix.block
        scales = matrix.row_scales().T.contiguous()  # [blocks, rows], always float32: the pointer is read as such
        asymmetric = matrix.zero_point is not None
        offsets = matrix.row_offsets().T.contiguous()
        zero_points = offsets.to(torch.int8) if asymmetric else torch.zeros_like(scales, dtype=torch.int8)
        width = f"int{matrix.scheme.bits}"
        kept = "bf16" if matrix.scheme.scale_dtype == "bfloat16" else "fp32"
        codes = matrix.signed_codes().T.contiguous()
        blob = ark.repack_quantized_weight(codes, scales, zero_points, block, "fp32", width, kept, asymmetric)
        missing = None if asymmetric or matrix.integer_form.steps == 1 else -offsets * scales
        nothing = torch.empty(0)

        def linear(inputs: Tensor, bias: Tensor | None) -> Tensor:
            wide = inputs.to(torch.float32)
            wide_bias = nothing if bias is None else bias.to(torch.float32).contiguous()
            result = ark.woqgemm(wide, blob, wide_bias, rows, columns, block, "fp32", width, kept, asymmetric)
            if missing is not None:
                result.addmm_(block_sums(wide, block), missing)
            return result.to(inputs.dtype)

        return PreparedLinear(self.name, linear, bytes_of(blob, missing))
