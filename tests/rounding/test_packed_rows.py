"""Rounded weights in few bytes: what comes out is what went in, and every width takes its own bits."""

import pytest
import torch

import lightning_mpq as mpq
from lightning_mpq.quantizers import quantize_rows
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
