"""A rounded weight as it is kept while bits are decided: its codes packed at their true width."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..quantizers import QuantizedRows
from ..quantizers.packing import BLOCK, pack_codes, unpack_codes
from ..schemes import WeightScheme


@dataclass(frozen=True)
class PackedRows:
    """What `QuantizedRows` says, in fewer bytes.

    Attributes:
        codes: The packed stream, uint8.
        shape: Rows and columns.
        scale: As in `QuantizedRows`.
        zero_point: Likewise.
        scheme: Likewise.
    """

    codes: Tensor
    shape: tuple[int, int]
    scale: Tensor
    zero_point: Tensor | None
    scheme: WeightScheme

    @classmethod
    def of(cls, rows: QuantizedRows) -> PackedRows:
        """Pack the codes of a rounded weight."""
        shape = (rows.codes.shape[0], rows.codes.shape[1])
        return cls(pack_codes(rows.codes, rows.scheme.bits), shape, rows.scale, rows.zero_point, rows.scheme)

    def unpacked(self) -> QuantizedRows:
        """Return codes of a byte each, with these scales."""
        count = self.shape[0] * self.shape[1]
        codes = unpack_codes(self.codes, self.scheme.bits, count).view(self.shape)
        return QuantizedRows(codes, self.scale, self.zero_point, self.scheme)

    def some(self, rows: slice | Tensor) -> QuantizedRows:
        """Return some of the rows, by a slice or an index; no others are unpacked where each fills whole blocks."""
        count, columns = self.shape
        if columns % BLOCK:
            return self.unpacked().part(rows)
        packed = QuantizedRows(self.codes.view(count, -1), self.scale, self.zero_point, self.scheme).part(rows)
        return replace(packed, codes=unpack_codes(packed.codes, self.scheme.bits, columns))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What there is to store, by name."""
        parts = {"codes": self.codes, "scale": self.scale, "zero_point": self.zero_point}
        return {name: tensor for name, tensor in parts.items() if tensor is not None}
