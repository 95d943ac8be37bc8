"""Rounded weights in few bytes: what comes out is what went in, and every width takes its own bits."""

import pytest
import torch

import lightning_mpq as mpq
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.quantizers.packing import unpack_codes
from lightning_mpq.rounding.packed_rows import PackedRows


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", ["half", "asymmetric"])
def test_unpacked_is_as_it_was_rounded(bits, grid):
    rounded = quantize_rows(torch.randn(5, 48), mpq.WeightScheme(bits, 16, grid))
    packed = PackedRows.of(rounded)
    assert packed.codes.numel() == 5 * 48 * bits // 8
    again = packed.unpacked()
    assert torch.equal(again.codes, rounded.codes)
    assert torch.equal(again.dequantize(), rounded.dequantize())
    assert set(packed.tensors) == {"codes", "scale"} | ({"zero_point"} if grid == "asymmetric" else set())


@pytest.mark.parametrize("rows", [slice(1, 4), torch.tensor([4, 0, 4])], ids=["slice", "index"])
@pytest.mark.parametrize("granularity", ["tensor", "channel", 16])
@pytest.mark.parametrize("columns", [48, 45])
def test_some_rows_are_those_of_the_whole(columns, granularity, rows):
    rounded = quantize_rows(torch.randn(5, columns), mpq.WeightScheme(3, granularity, "asymmetric"))
    some = PackedRows.of(rounded).some(rows)
    assert torch.equal(some.codes, rounded.codes[rows])
    assert torch.equal(some.dequantize(), rounded.dequantize()[rows])


def test_of_a_table_no_other_rows_are_unpacked(monkeypatch):
    packed, seen = PackedRows.of(quantize_rows(torch.randn(50, 16), mpq.WeightScheme(5))), list[int]()

    def unpack(codes: torch.Tensor, bits: int, count: int) -> torch.Tensor:
        seen.append(codes.numel())
        return unpack_codes(codes, bits, count)

    monkeypatch.setattr("lightning_mpq.rounding.packed_rows.unpack_codes", unpack)
    packed.some(torch.tensor([7, 3]))
    assert seen == [2 * 16 * 5 // 8]
