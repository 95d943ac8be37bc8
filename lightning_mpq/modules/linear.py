"""The packed Linear layer, which a kernel may multiply by without dequantizing its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .kernels import PLAIN, PackedMatrix, linear_by_kernel, prepared_bytes
from .packed import PackedLayer, register_packed


@register_packed
class PackedLinear(PackedLayer, nn.Linear):
    """A Linear layer that stores 2..8-bit codes.

    Attributes:
        kernel_choice: ``"plain"`` (dequantize, then ``F.linear``), ``"auto"`` or a kernel's name; set it with
            `use_kernels`. A layer that keeps its dequantized weight (``memory="fast"``) needs no kernel.
    """

    kernel_choice: str = PLAIN

    def matrix(self) -> PackedMatrix:
        """Return what a kernel is given."""
        rows, columns = self.row_shape
        return PackedMatrix(self.packed_codes, self.scale, self.zero_point, self.scheme, rows, columns)

    @property
    def kernel_bytes(self) -> int:
        """Bytes that kernels keep beside the stored ones, in memory only."""
        return 0 if self.kernel_choice == PLAIN else prepared_bytes(self.matrix())

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input @ weight.T + bias`` of the quantized input, by the chosen kernel where it can."""
        input = self.quantized_input(input)
        if self.kernel_choice == PLAIN or self.dense_weight is not None or input.is_meta:
            return super().forward(input)
        device, dtype = input.device.type, self.weight_dtype
        bias: Tensor | None = self.bias
        if torch.is_autocast_enabled(device):  # computes as F.linear would there
            dtype = torch.get_autocast_dtype(device)
            input = input.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if input.dtype != dtype or (bias is not None and bias.dtype != dtype) or input.device != self.scale.device:
            return super().forward(input)  # which says what does not fit
        return linear_by_kernel(input, self.matrix(), bias, self.kernel_choice)

    def extra_repr(self) -> str:
        """Say what every packed layer says, and the choice of the kernel with its cost in bytes."""
        if self.kernel_choice == PLAIN:
            return super().extra_repr()
        return f"{super().extra_repr()}, kernel={self.kernel_choice!r} ({self.kernel_bytes} bytes in memory)"
