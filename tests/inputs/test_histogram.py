"""Histograms count the same whatever the order, the division and the size of the data."""

import pytest
import torch
from torch import Tensor

from lightning_mpq.inputs.histogram import HALF, InputHistogram


def counted(parts: list[Tensor], weights: Tensor | None = None) -> InputHistogram:
    histogram = InputHistogram()
    for part in parts:
        histogram.add(part, weights)
    return histogram


def values(scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(seed)) * scale


def test_agrees_with_numpy():
    x = values()
    found = counted([x])
    assert found.reach == 2 ** int(torch.ceil(torch.log2(x.abs().max())))
    expected = torch.histogram(x.double().flatten(), 2 * HALF, range=(-found.reach, found.reach)).hist
    assert torch.equal(found.counts, expected)
    assert (found.low, found.high) == (float(x.min()), float(x.max()))


def test_neither_order_nor_division_counts():
    parts = [torch.zeros(2, 3), values(0.01), values(100.0, 1), values(1.0, 2)]
    once = counted([torch.cat(parts)])
    for order in (parts, parts[::-1]):
        assert torch.equal(counted(order).counts, once.counts)
    one, other = counted(parts[:2]), counted(parts[2:])
    one.merge(other)
    assert torch.equal(one.counts, once.counts)
    assert (one.low, one.high, one.reach) == (once.low, once.high, once.reach)
    other, one = counted(parts[2:]), counted(parts[:2])
    other.merge(one)
    assert torch.equal(other.counts, once.counts)


def test_channels_count_by_their_weight():
    weights = torch.tensor([1.0, 0.0, 2.0])
    x = values()
    alone = counted([x[:, :1]]), counted([x[:, 2:]])
    found = counted([x], weights)
    for part in alone:
        part._extend(found.reach)
    assert torch.allclose(found.counts, alone[0].counts + 2 * alone[1].counts)


def test_zeros_and_nothing():
    nothing, zeros = counted([torch.zeros(0, 3)]), counted([torch.zeros(4, 3)])
    assert not nothing.seen
    assert zeros.seen
    assert zeros.reach == 0
    zeros.merge(nothing)
    zeros.merge(counted([values()]))
    assert torch.equal(zeros.counts, counted([torch.zeros(4, 3), values()]).counts)


def test_a_quantile_lies_where_sorting_finds_it():
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0)) * 3
    found = counted([x])
    for fraction in (0.01, 0.5, 0.99):
        assert found.quantile(fraction) == pytest.approx(float(x.flatten().quantile(fraction)), abs=0.1)


def test_many_rows_are_counted_evenly():
    x = torch.linspace(-1, 1, 2**20)[:, None]
    found = counted([x])
    assert (found.low, found.high) == (-1, 1)
    assert found.quantile(0.25) == pytest.approx(-0.5, abs=1e-3)
