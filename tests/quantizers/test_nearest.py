"""Rounding against a slow reference that searches every level, and properties that hold for any weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.quantizers import QuantizedRows, quantize_rows
from lightning_mpq.schemes import WeightScheme

schemes = st.builds(
    WeightScheme,
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel", 1, 3, 4, 64]),
    grid=st.sampled_from(DEFAULT_GRIDS),
    clip=st.sampled_from(["absmax", "mse", 0.7]),
    scale_dtype=st.sampled_from(["bfloat16", "float32"]),
)
shapes = st.tuples(st.integers(1, 6), st.integers(1, 19))


def random_rows(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10 ** (seed % 7 - 3)


def scale_and_offset_of(quantized: QuantizedRows, row: int, column: int) -> tuple[float, float]:
    """Read the scale and zero of one weight with plain indexing, independently of the library's `spread`."""
    scheme = quantized.scheme
    i = 0 if scheme.granularity == "tensor" else row
    j = column // scheme.granularity if isinstance(scheme.granularity, int) else 0
    offset = {"symmetric": 2 ** (scheme.bits - 1), "half": 2 ** (scheme.bits - 1) - 0.5}.get(scheme.grid)
    if offset is None:
        offset = float(quantized.zero_point[i, j])
    return float(quantized.scale[i, j]), offset


@settings(max_examples=150)
@given(shapes, schemes, st.integers(0, 10**6))
def test_each_weight_takes_the_nearest_of_all_levels(shape, scheme, seed):
    rows = random_rows(shape, seed)
    quantized = quantize_rows(rows, scheme)
    values = quantized.dequantize(torch.float64)
    for row in range(shape[0]):
        for column in range(shape[1]):
            scale, offset = scale_and_offset_of(quantized, row, column)
            levels = scale * (torch.arange(2**scheme.bits, dtype=torch.float64) - offset)
            assert values[row, column] in levels
            distance = (values[row, column] - rows[row, column].double()).abs()
            best = (levels - rows[row, column].double()).abs().min()
            assert distance <= best + 1e-6 * scale * 2**scheme.bits


@settings(max_examples=100)
@given(shapes, schemes, st.integers(0, 10**6))
def test_shapes_ranges_and_storage(shape, scheme, seed):
    quantized = quantize_rows(random_rows(shape, seed), scheme)
    assert quantized.codes.dtype == torch.uint8
    assert int(quantized.codes.max()) < 2**scheme.bits
    assert quantized.scale.numel() == scheme.scale_count(*shape)
    assert (quantized.zero_point is None) == (scheme.grid != "asymmetric")


@settings(max_examples=100)
@given(shapes, schemes, st.integers(0, 10**6))
def test_mse_clip_is_never_worse_than_absmax(shape, scheme, seed):
    rows = random_rows(shape, seed)

    def error(clip: str) -> float:
        values = quantize_rows(rows, WeightScheme(scheme.bits, scheme.granularity, scheme.grid, clip)).dequantize()
        return float((values - rows).square().sum())

    assert error("mse") <= error("absmax") * (1 + 1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_error_is_at_most_half_a_step_without_clipping(bits, grid):
    rows = random_rows((5, 33), 3)
    quantized = quantize_rows(rows, WeightScheme(bits, grid=grid, scale_dtype="float32"))
    # an integer zero point moves the range by up to half a step, so the outermost weights may err by a whole one
    limit = 1.0 if grid == "asymmetric" else 0.5
    assert ((quantized.dequantize() - rows).abs() <= limit * quantized.scale * (1 + 1e-5)).all()


@pytest.mark.parametrize("grid", ["symmetric", "half"])
def test_rounding_again_changes_nothing(grid):
    scheme = WeightScheme(4, grid=grid, scale_dtype="float32")
    once = quantize_rows(random_rows((8, 32), 1), scheme).dequantize()
    if grid == "half":  # the extreme level is taken on one side at least, so that the range is the same again
        torch.testing.assert_close(quantize_rows(once, scheme).dequantize(), once)
    else:
        assert ((quantize_rows(once, scheme).dequantize() - once).abs() < 1e-5).all()


@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
def test_a_row_of_zeros_stays_zero(grid, granularity):
    rows = torch.zeros(3, 8)
    assert (quantize_rows(rows, WeightScheme(3, granularity, grid)).dequantize() == 0).all()


def test_one_huge_outlier_does_not_touch_other_channels():
    rows = random_rows((4, 16), 5)
    spoiled = rows.clone()
    spoiled[2, 3] = 1e30
    scheme = WeightScheme(4)
    clean, dirty = quantize_rows(rows, scheme).dequantize(), quantize_rows(spoiled, scheme).dequantize()
    assert torch.equal(clean[[0, 1, 3]], dirty[[0, 1, 3]])
    assert torch.isfinite(dirty).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(value):
    rows = torch.ones(2, 3)
    rows[1, 1] = value
    with pytest.raises(NonFiniteError, match="1 of 6 weights"):
        quantize_rows(rows, WeightScheme(4))


def test_a_scale_that_does_not_fit_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="does not fit float16. Choose scale_dtype='bfloat16'"):
        quantize_rows(torch.full((1, 2), 1e-12), WeightScheme(4, scale_dtype="float16"))


def test_awkward_input_is_refused():
    with pytest.raises(ValueError, match="non-empty floating-point matrix"):
        quantize_rows(torch.zeros(2, 0), WeightScheme(4))
    with pytest.raises(ValueError, match="non-empty floating-point matrix"):
        quantize_rows(torch.zeros(2, 3, dtype=torch.int64), WeightScheme(4))
