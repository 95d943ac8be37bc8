"""Inputs are rounded as ONNX says: by numpy's own arithmetic, and at the edges of the range."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mpq.inputs.quantizer import InputRange, quantize_inputs, range_between
from lightning_mpq.schemes import InputScheme


def by_numpy(x: torch.Tensor, scale: float, zero_point: int, bits: int) -> torch.Tensor:
    """``QuantizeLinear`` and ``DequantizeLinear``, with codes that end at 2**bits - 1."""
    wide = x.float().numpy()
    codes = np.clip(np.rint(wide / np.float32(scale)) + zero_point, 0, 2**bits - 1)
    return torch.from_numpy(((codes - zero_point) * np.float32(scale)).astype(np.float32)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_rounds_as_onnx_does(dtype, bits, symmetric):
    x = (torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    scheme = InputScheme(bits, symmetric=symmetric)
    found = range_between(-1.3, 2.9, scheme)
    assert torch.equal(quantize_inputs(x, scheme, *found.tensors()), by_numpy(x, found.scale, found.zero_point, bits))


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.integers(4, 8), st.booleans())
def test_a_range_reaches_from_end_to_end_and_has_zero(low, high, bits, symmetric):
    scheme = InputScheme(bits, symmetric=symmetric)
    found = range_between(low, high, scheme)
    ends = torch.tensor([min(low, 0.0), 0.0, max(high, 0.0)], dtype=torch.float64)
    rounded = quantize_inputs(ends, scheme, *found.tensors())
    assert rounded[1] == 0
    assert 0 <= found.zero_point <= 2**bits - 1
    if float(ends.abs().max()) > 1e-30:
        assert float((rounded - ends).abs().max()) <= 0.51 * found.scale * (1 + 1e-5)


def test_zeros_alone_have_a_range_and_stay_zero():
    found = range_between(0.0, 0.0, InputScheme(8))
    assert found == InputRange(1.0, 0)
    assert not quantize_inputs(torch.zeros(3), InputScheme(8), *found.tensors()).any()


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_token_has_a_range_of_its_own(symmetric):
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.0, 1e-3, 50.0])[:, None]
    scheme = InputScheme(8, "token", symmetric=symmetric)
    found = quantize_inputs(x, scheme)
    for row, rounded in zip(x.flatten(0, 1), found.flatten(0, 1), strict=True):
        alone = range_between(float(row.min()), float(row.max()), scheme)
        torch.testing.assert_close(rounded, by_numpy(row, alone.scale, alone.zero_point, 8), rtol=1e-5, atol=1e-9)


def test_nan_stays_and_infinity_is_clipped():
    found = quantize_inputs(
        torch.tensor([float("nan"), float("inf"), -float("inf")]), InputScheme(8), *InputRange(1.0, 8).tensors()
    )
    assert found.isnan()[0]
    assert found[1:].tolist() == [247.0, -8.0]


def test_integers_are_refused():
    with pytest.raises(TypeError, match="floating-point numbers, got torch.int64"):
        quantize_inputs(torch.arange(3), InputScheme(8), *InputRange(0.5, 0).tensors())
