"""Ranges are those of the least squared error, by brute force over the values themselves."""

import pytest
import torch
from torch import Tensor

from lightning_mpq.inputs.histogram import InputHistogram
from lightning_mpq.inputs.quantizer import quantize_inputs, range_between
from lightning_mpq.inputs.range_search import best_range, squared_error
from lightning_mpq.schemes import InputScheme


def data(kind: str) -> Tensor:
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
    return {"normal": x, "relu": x.relu(), "heavy": x**5, "shifted": x + 2, "positive": x.abs() + 3}[kind]


def counted(x: Tensor) -> InputHistogram:
    histogram = InputHistogram()
    histogram.add(x)
    return histogram


def error(x: Tensor, low: float, high: float, scheme: InputScheme) -> float:
    return float((quantize_inputs(x, scheme, *range_between(low, high, scheme).tensors()) - x).double().square().mean())


@pytest.mark.parametrize("kind", ["normal", "relu", "heavy", "shifted", "positive"])
@pytest.mark.parametrize("scheme", [InputScheme(4), InputScheme(8), InputScheme(5, symmetric=True)], ids=str)
def test_no_range_on_a_grid_is_much_better(kind, scheme):
    x = data(kind)
    histogram = counted(x)
    found = best_range(histogram, scheme)
    own = float((quantize_inputs(x, scheme, *found.tensors()) - x).double().square().mean())
    parts = torch.linspace(0.02, 1, 25).tolist()
    low, high = float(x.min()), float(x.max())
    least = min(error(x, low * below, high * above, scheme) for below in parts for above in parts)
    assert own <= 1.05 * least
    assert squared_error(histogram, found, scheme) == pytest.approx(own, rel=0.1)  # zeros stand in the middle of a bin
    for clip in ("absmax", "percentile"):
        other = best_range(histogram, InputScheme(scheme.bits, symmetric=scheme.symmetric, clip=clip))
        assert own <= 1.02 * float((quantize_inputs(x, scheme, *other.tensors()) - x).double().square().mean())


@pytest.mark.parametrize("clip", ["mse", "percentile", "absmax"])
def test_where_nothing_is_negative_all_levels_are_above_zero(clip):
    assert best_range(counted(data("relu")), InputScheme(8, clip=clip)).zero_point == 0
    assert best_range(counted(-data("relu")), InputScheme(8, clip=clip)).zero_point == 255


def test_absmax_and_percentile_reach_where_they_say():
    x = data("normal")
    full = best_range(counted(x), InputScheme(8, clip="absmax"))
    assert full == range_between(float(x.min()), float(x.max()), InputScheme(8))
    x = torch.cat([x, torch.tensor([[1e4]])])
    most = best_range(counted(x.repeat(10, 1)), InputScheme(8, clip="percentile"))
    assert most.scale * 255 > 1e3  # one in 4,001 values is more than a ten-thousandth
    most = best_range(
        counted(torch.cat([data("normal")] * 5 + [torch.tensor([[1e4]])])), InputScheme(8, clip="percentile")
    )
    assert most.scale * 255 < 20
