"""Integers and scales for ONNX are the rounded weight itself, to the last bit, and fit their containers."""

from itertools import product

import pytest
import torch

from lightning_mpq.export.onnx.containers import halved, hold, may_saturate
from lightning_mpq.export.onnx.layout import steps_to_weight
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.quantizers import QuantizedRows, quantize_rows
from lightning_mpq.quantizers.quantized_rows import spread
from lightning_mpq.schemes import WeightScheme

SCHEMES = [
    WeightScheme(bits, granularity, grid, scale_dtype=scale_dtype)
    for bits, granularity, grid, scale_dtype in product(
        range(2, 9), ("tensor", "channel", 3, 50), DEFAULT_GRIDS, ("bfloat16", "float16")
    )
]


@pytest.mark.parametrize("multiplied", [False, True])
@pytest.mark.parametrize("two_bits", [False, True])
def test_held_weights_are_the_rounded_ones(multiplied, two_bits):
    torch.manual_seed(0)
    rows = torch.randn(5, 11)
    for scheme in SCHEMES:
        quantized = quantize_rows(rows, scheme)
        held = hold(quantized, multiplied=multiplied, two_bits=two_bits)
        scale = spread(held.scale.float(), scheme, 11)
        zero = 0 if held.zero_point is None else spread(held.zero_point, scheme, 11)
        weights = scale * (held.levels - zero)
        weights = weights + scale / 2 if held.add_half else weights
        assert torch.equal(weights, quantized.dequantize()), scheme
        bits = int(held.container.lstrip("UINT"))
        assert bits in ((2, 4, 8, 16) if two_bits else (4, 8, 16))
        low, high = (0, 2**bits - 1) if held.container.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        for integers in (held.levels, *([] if held.zero_point is None else [held.zero_point])):
            assert low <= int(integers.min()) <= int(integers.max()) <= high, scheme


@pytest.mark.parametrize(
    ("bits", "grid", "multiplied", "container"),
    [
        (2, "symmetric", True, "INT2"),
        (3, "symmetric", True, "INT4"),
        (4, "symmetric", False, "INT4"),
        (5, "symmetric", True, "INT8"),
        (8, "symmetric", True, "INT8"),
        (2, "asymmetric", True, "UINT2"),
        (3, "asymmetric", False, "UINT4"),
        (2, "half", True, "INT4"),  # a product from integers, at the price of a wider type
        (2, "half", False, "INT2"),
        (3, "half", True, "INT4"),
        (4, "half", False, "INT4"),
        (7, "half", True, "INT8"),
        (8, "half", True, "INT8"),  # no product from 16 bits, so nothing is gained
    ],
)
def test_the_narrowest_container_that_serves(bits, grid, multiplied, container):
    quantized = quantize_rows(torch.randn(4, 6), WeightScheme(bits, grid=grid))
    assert hold(quantized, multiplied=multiplied, two_bits=True).container == container


def test_a_zero_point_beyond_the_codes_takes_a_wider_container():
    scheme = WeightScheme(3, grid="asymmetric", scale_dtype="float32")
    far = QuantizedRows(torch.tensor([[0, 7]]).byte(), torch.tensor([[0.5]]), torch.tensor([[200]]).byte(), scheme)
    held = hold(far, multiplied=True, two_bits=True)
    assert held.container == "UINT8"
    assert torch.equal(held.scale * (held.levels - held.zero_point), far.dequantize())


def test_scales_without_an_exact_half_are_widened():
    smallest = torch.tensor([2.0**-24], dtype=torch.float16)
    assert halved(smallest).dtype == torch.float32
    assert float(halved(smallest)) == 2.0**-25
    assert halved(torch.tensor([3.0], dtype=torch.float16)).dtype == torch.float16


def test_a_layout_that_is_no_permutation_is_refused():
    with pytest.raises(ValueError, match="no permutation"):
        steps_to_weight(lambda rows: rows.flatten()[[3, 0, 1, 2]].reshape(2, 2), rows=2, columns=2, groups=1)


@pytest.mark.parametrize("grid", ["symmetric", "half", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 6, 7, 8])
@pytest.mark.parametrize("code_bits", [4, 7, 8])
def test_products_of_which_two_fit_16_bits(grid, bits, code_bits):
    """By brute force over the levels that a weight can have, as `multiply_integers` takes them."""
    scheme = WeightScheme(bits, grid=grid)
    codes = torch.arange(2**bits)
    levels = {"symmetric": codes - 2 ** (bits - 1), "half": 2 * codes - 2**bits + 1}.get(grid, codes)
    zeros = codes if grid == "asymmetric" else torch.zeros(1, dtype=torch.int64)
    largest = int((levels[:, None] - zeros).abs().max())
    assert may_saturate(scheme, 2**code_bits - 1) == (2 * largest * (2**code_bits - 1) > 2**15 - 1)
