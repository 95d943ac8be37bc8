"""The operator that packed Linear layers call: ``torch.ops.lightning_mpq.packed_linear``.

Its arguments are the stored format, so a compiled or exported program holds nothing that only one processor or one
package can read: which kernel multiplies is decided where the program runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...schemes import WeightScheme
from .matrix import PackedMatrix
from .prepared import prepared_for

_SCHEMA = (
    "(Tensor input, Tensor packed_codes, Tensor scale, Tensor? zero_point, Tensor? bias, "
    "int bits, str granularity, str grid, int rows, int columns, str kernel) -> Tensor"
)


def linear_by_kernel(inputs: Tensor, matrix: PackedMatrix, bias: Tensor | None, kernel: str) -> Tensor:
    """Return what ``F.linear`` gives with the dequantized weight, computed by a kernel where one can.

    Args:
        inputs: [..., columns], in the type that is computed in.
        matrix: The weight.
        bias: [rows], in the type of the inputs, or None.
        kernel: A kernel's name, or ``"auto"``.
    """
    scheme = matrix.scheme
    result: Tensor = torch.ops.lightning_mpq.packed_linear(
        inputs, matrix.packed_codes, matrix.scale, matrix.zero_point, bias,
        scheme.bits, str(scheme.granularity), scheme.grid, matrix.rows, matrix.columns, kernel,
    )  # fmt: skip
    return result


@lru_cache(maxsize=1024)
def _scheme(bits: int, granularity: str, grid: Any, scale_dtype: Any) -> WeightScheme:
    spread: Any = int(granularity) if granularity.isdigit() else granularity
    return WeightScheme(bits, spread, grid, scale_dtype=scale_dtype)


def _matrix(
    packed_codes: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, granularity: str, grid: str, rows: int,
    columns: int,
) -> PackedMatrix:  # fmt: skip
    scheme = _scheme(bits, granularity, grid, str(scale.dtype).removeprefix("torch."))
    return PackedMatrix(packed_codes, scale, zero_point, scheme, rows, columns)


@torch.library.custom_op("lightning_mpq::packed_linear", mutates_args=(), schema=_SCHEMA)
def _packed_linear(
    input: Tensor, packed_codes: Tensor, scale: Tensor, zero_point: Tensor | None, bias: Tensor | None,
    bits: int, granularity: str, grid: str, rows: int, columns: int, kernel: str,
) -> Tensor:  # fmt: skip
    matrix = _matrix(packed_codes, scale, zero_point, bits, granularity, grid, rows, columns)
    flat = input.reshape(-1, columns).contiguous()
    prepared = prepared_for(matrix, kernel, input.dtype).prepared if len(flat) else None
    with torch.autocast(input.device.type, enabled=False):  # the layer has cast what there is to cast
        if prepared is None:
            result = torch.nn.functional.linear(flat, matrix.dequantize(input.dtype), bias)
        else:
            result = prepared.linear(flat, bias)
    return result.view(*input.shape[:-1], rows)


@_packed_linear.register_fake
def _(input: Tensor, *weight: Any) -> Tensor:
    rows = weight[7]
    return input.new_empty((*input.shape[:-1], rows))


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, packed_codes, scale, zero_point, _, *ctx.rest = inputs
    ctx.save_for_backward(packed_codes, scale, *([] if zero_point is None else [zero_point]))


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Multiply by the dequantized weight, as the plain path does; the weight itself has no gradient."""
    packed_codes, scale, *zero_point = ctx.saved_tensors
    matrix = _matrix(packed_codes, scale, zero_point[0] if zero_point else None, *ctx.rest[:-1])
    to_input = grad @ matrix.dequantize(grad.dtype) if ctx.needs_input_grad[0] else None
    to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if ctx.needs_input_grad[4] else None
    return (to_input, None, None, None, to_bias, *(None for _ in ctx.rest))


_packed_linear.register_autograd(_backward, setup_context=_keep_for_backward)
