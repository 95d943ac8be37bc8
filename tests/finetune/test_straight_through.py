"""Gradients of fake quantization: LSQ's formulas, element by element, and finite differences of the surrogate."""

import pytest
import torch
from torch import nn

from lightning_mpq.finetune.quantizer import WeightQuantizer
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

GRANULARITIES = ["tensor", "channel", 3]


def blocks_of(granularity, columns):
    return {"tensor": columns, "channel": columns}.get(granularity, granularity)


def quantizer_of(rows, scheme, **options):
    layer = nn.Linear(rows.shape[1], rows.shape[0], dtype=rows.dtype)
    return WeightQuantizer(layer, quantize_rows(rows, scheme), **options)


def prepared(grid, granularity, bits=2, margin=0.0):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(4, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    scheme = WeightScheme(bits, granularity=granularity, grid=grid, clip=0.6, scale_dtype="float32")
    quantizer = quantizer_of(rows, scheme, margin=margin)
    return rows, quantizer, torch.randn(4, 7, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gradients_are_those_of_lsq(grid, granularity, margin):
    rows, quantizer, upstream = prepared(grid, granularity, margin=margin)
    (quantizer(rows) * upstream).sum().backward()
    of_scale = torch.zeros_like(quantizer.first_scale)
    counts = torch.zeros_like(of_scale)
    levels = 4
    block = blocks_of(granularity, 7)
    for r in range(4):
        for c in range(7):
            where = (0, 0) if granularity == "tensor" else (r, c // block)
            s = float(quantizer.scale()[where])
            offset = {"symmetric": 2.0, "half": 1.5}.get(grid)
            offset = float(quantizer.zero_point[where]) if offset is None else offset
            low, high = -offset, levels - 1 - offset
            v = rows[r, c].item() / s
            q = min((level - offset for level in range(levels)), key=lambda level: abs(level - v))
            inside = low - margin <= v <= high + margin
            assert float(rows.grad[r, c]) == (upstream[r, c].item() if inside else 0.0)
            of_scale[where] += upstream[r, c].item() * (q - v if inside else q)
            counts[where] += 1
    positive = 1.0 if grid == "symmetric" else 1.5
    expected = of_scale / (counts * positive).sqrt() / quantizer.first_scale
    torch.testing.assert_close(quantizer.relative_scale.grad, expected)
    # One step of gradient descent moves the scale itself by LSQ's own step.
    moved = quantizer.first_scale * (1 - 0.01 * quantizer.relative_scale.grad)
    torch.testing.assert_close(moved - quantizer.first_scale, -0.01 * of_scale / (counts * positive).sqrt())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_gradients_are_finite_differences_of_the_surrogate(grid, granularity):
    """The surrogate rounds by a constant: s * clip(w / s + (q0 - v0), lo, hi), exact where codes do not change."""
    rows, quantizer, upstream = prepared(grid, granularity, bits=3)
    (quantizer(rows) * upstream).sum().backward()
    scale = quantizer.first_scale
    block = blocks_of(granularity, 7)

    def wide(values):
        values = values.expand(4, -1) if granularity == "tensor" else values
        return values.repeat_interleave(block, dim=1)[:, :7]

    offset = {"symmetric": torch.tensor(4.0), "half": torch.tensor(3.5)}.get(grid)
    offset = wide(quantizer.zero_point.double()) if offset is None else offset.double()
    low, high = -offset, 7 - offset
    v0 = (rows / wide(scale)).detach()
    rounding = (quantizer(rows) / wide(scale)).detach() - torch.minimum(torch.maximum(v0, low), high)

    def surrogate(w, s):
        steps = torch.minimum(torch.maximum(w / wide(s), low), high)
        return float((wide(s) * (steps + rounding) * upstream).sum())

    h = 1e-6
    for index in [(0, 0), (1, 3), (2, 6), (3, 5)]:
        bump = torch.zeros_like(rows)
        bump[index] = h
        slope = (surrogate(rows.detach() + bump, scale) - surrogate(rows.detach() - bump, scale)) / (2 * h)
        assert slope == pytest.approx(float(rows.grad[index]), abs=1e-6)
    for index in [(0, 0), (scale.shape[0] - 1, scale.shape[1] - 1)]:
        bump = torch.zeros_like(scale)
        bump[index] = h
        slope = (surrogate(rows.detach(), scale + bump) - surrogate(rows.detach(), scale - bump)) / (2 * h)
        gradient = quantizer.relative_scale.grad[index] / quantizer._slope()[index]
        assert slope == pytest.approx(float(gradient), abs=1e-5)


def test_a_scale_of_zero_stays_dead():
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0]], requires_grad=True)
    quantizer = quantizer_of(rows, WeightScheme(2, grid="half"))
    quantizer(rows).sum().backward()
    assert torch.equal(rows.grad[0], torch.zeros(2))
    assert torch.isfinite(quantizer.relative_scale.grad).all()
    quantizer.relative_scale.data.fill_(3.0)
    assert torch.equal(quantizer(rows)[0], torch.zeros(2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_shows(value):
    rows = torch.randn(2, 5)
    quantizer = quantizer_of(rows, WeightScheme(2))
    rows[1, 2] = value
    assert (~torch.isfinite(quantizer(rows))).nonzero().tolist() == [[1, 2]]


def test_a_scale_never_turns_negative():
    rows = torch.randn(2, 5)
    quantizer = quantizer_of(rows, WeightScheme(2))
    quantizer.relative_scale.data.fill_(-1.0)
    assert (quantizer.scale() > 0).all()
    assert torch.isfinite(quantizer(rows)).all()


@pytest.mark.parametrize(("relative", "factor"), [(-3.0, 0.25), (0.0, 0.25), (1.5, 1.5), (100.0, 4.0)])
def test_a_scale_stays_within_a_factor_of_four_of_its_start(relative, factor):
    rows, quantizer, _ = prepared("half", "channel")
    start = quantizer.scale()
    with torch.no_grad():
        quantizer.relative_scale.fill_(relative)
    assert torch.allclose(quantizer.scale(), factor * start)
    assert torch.equal(quantizer(rows).detach(), quantizer.quantized(rows.detach()).dequantize(torch.float64))


def test_a_scale_below_the_least_normal_half_precision_number_is_kept():
    rows = torch.full((2, 4), 1e-4)
    scheme = WeightScheme(6, granularity="channel", grid="symmetric", scale_dtype="float16")
    start = quantize_rows(rows, scheme)
    assert 0 < float(start.scale.max()) < torch.finfo(torch.float16).tiny
    assert torch.equal(quantizer_of(rows, scheme).scale(), start.scale)
