"""Weights that are rounded some rows at a time: the same result, and nothing of their size but codes."""

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.quantizers import RowRounding, quantize_rows, round_rows
from lightning_mpq.schemes import WeightScheme

COLUMNS = 11


def layer(parts: int, height: int) -> tuple[Tensor, Tensor]:
    """Return a weight [parts * height, COLUMNS] and a moment of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(parts * height, COLUMNS, generator=generator, dtype=torch.float64)
    inputs = torch.randn(parts, 40, COLUMNS, generator=generator, dtype=torch.float64).cumsum(2)
    return rows, inputs.mT @ inputs / 40


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_chunks_do_not_change_the_result(granularity, grid, monkeypatch):
    rows, moment = layer(parts=2, height=5)
    scheme = WeightScheme(2, granularity, grid, "moment", rounding="second_order")
    whole = round_rows(rows, moment, [scheme])[0]
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows.SIDE_BY_SIDE", 2 * 11 * 3)
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows._LEAST_ROWS", 1)
    cut = round_rows(rows, moment, [scheme])[0]
    assert torch.equal(whole.quantized.codes, cut.quantized.codes)
    assert whole.error == pytest.approx(cut.error)


@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
@pytest.mark.parametrize("granularity", ["channel", 4])
def test_nothing_but_codes_is_as_large_as_the_weight(granularity, rounding, monkeypatch):
    rows, moment = layer(parts=1, height=64)
    rows = rows.bfloat16()
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows.SIDE_BY_SIDE", 1)
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows._LEAST_ROWS", 1)
    made: list[Tensor] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            made.extend(each for each in pytree.tree_leaves(result) if isinstance(each, Tensor))
            return result

    with Watching():
        round_rows(rows, moment, [WeightScheme(b, granularity, clip="moment", rounding=rounding) for b in (2, 3)])
    large = {(each.dtype, each.untyped_storage().data_ptr()) for each in made if each.numel() >= rows.numel()}
    given = (rows.dtype, rows.untyped_storage().data_ptr())
    assert {dtype for dtype, _ in large - {given}} == {torch.uint8}


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_weights_are_dequantized_some_rows_at_a_time(granularity, grid, monkeypatch):
    rows, _ = layer(parts=1, height=9)
    quantized = quantize_rows(rows, WeightScheme(3, granularity, grid))
    whole = quantized.dequantize(torch.bfloat16)
    monkeypatch.setattr("lightning_mpq.quantizers.quantized_rows._AT_ONCE", 2 * COLUMNS)
    assert torch.equal(quantized.dequantize(torch.bfloat16), whole)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_what_is_rounded_in_the_place_of_rows_is_asked_for_some_rows_at_a_time(granularity, monkeypatch):
    rows, moment = layer(parts=2, height=5)
    scheme = WeightScheme(3, granularity, clip="moment", rounding="second_order")
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows.SIDE_BY_SIDE", 1)
    monkeypatch.setattr("lightning_mpq.quantizers.some_rows._LEAST_ROWS", 1)
    heights: list[int] = []

    def aim(some: Tensor) -> Tensor:
        heights.append(len(some))
        return some * 1.3

    found, expected = RowRounding(moment).round(rows, [scheme], aim=aim), round_rows(rows * 1.3, moment, [scheme])
    assert torch.equal(found[0].quantized.codes, expected[0].quantized.codes)
    assert heights == ([10] if granularity == "tensor" else [2] * 5)
    with pytest.raises(NonFiniteError):
        RowRounding(moment).round(rows, [scheme], aim=lambda some: some / 0)
