"""The packed Embedding layer, which unpacks only the rows that are asked for."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from ..quantizers.packing import packed_size, unpack_codes
from ..quantizers.quantized_rows import dequantize
from .packed import PackedLayer, register_packed


@register_packed
class PackedEmbedding(PackedLayer, nn.Embedding):
    """An Embedding layer that stores 2..8-bit codes.

    If a row fills whole bytes (columns * bits divisible by 8), a lookup touches only its own rows; otherwise
    the table is dequantized. With ``max_norm`` the rows that come out are renormalised; the stored table never
    changes.
    """

    @property
    def gathers_rows(self) -> bool:
        """Whether a lookup unpacks single rows."""
        whole_bytes = self.row_shape[1] * self.scheme.bits % 8 == 0
        return whole_bytes and self.max_norm is None and self.dense_weight is None

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows of the indices, [*input.shape, columns]."""
        if not self.gathers_rows:
            return super().forward(input)
        rows, columns = self.row_shape
        bits = self.scheme.bits
        row_bytes = columns * bits // 8
        indices = input.reshape(-1)
        table = self.packed_codes[: rows * row_bytes].view(rows, row_bytes)
        stream = pad(embedding(indices, table), (0, packed_size(columns, bits) - row_bytes))
        codes = unpack_codes(stream, bits, columns)
        scale, zero_point = self.scale, self.zero_point
        if self.scheme.granularity != "tensor":
            scale = embedding(indices, scale)
            zero_point = None if zero_point is None else embedding(indices, zero_point)
        found = dequantize(codes, scale, zero_point, self.scheme, self.weight_dtype)
        return found.view(*input.shape, columns)
