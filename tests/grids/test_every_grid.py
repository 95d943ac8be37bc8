"""What every grid must do, for all that are registered: a grid of one's own is held to it by being registered."""

import pytest
import torch
from torch import nn

from lightning_mpq.grids import register_grid
from lightning_mpq.grids.base import Grid
from lightning_mpq.grids.registry import grid_named, known_grids
from lightning_mpq.modules import pack_layer, stored_bytes
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.quantizers.packing import pack_codes, unpack_codes
from lightning_mpq.schemes import WeightScheme

every_grid = pytest.mark.parametrize(("name", "bits"), [(n, b) for n in known_grids() for b in grid_named(n).bits])
LOW = torch.tensor([-1.3, 0.0, -0.5, -2.0], dtype=torch.float64)[:, None]
HIGH = torch.tensor([0.7, 1.1, 0.5, 0.0], dtype=torch.float64)[:, None]


def placed(name, bits):
    """Return a grid, its levels for four ranges, and those of all codes, [4, 2^bits]."""
    grid = grid_named(name)
    scale, zero_point = grid.fit(LOW, HIGH, bits, "float32")
    levels = grid.place(scale.double(), None if zero_point is None else zero_point.double(), bits)
    codes = torch.arange(2**bits, dtype=torch.float64).expand(4, -1)
    return grid, levels, levels.values(codes)


@every_grid
def test_levels_rise_with_their_codes_and_span_the_range(name, bits):
    grid, levels, values = placed(name, bits)
    steps = values.diff(dim=1)
    assert (steps > 0).all()
    widest = steps.max(1, keepdim=True).values
    assert (values[:, :1] <= LOW + widest).all()
    assert (values[:, -1:] >= HIGH - widest).all()
    lowest, highest = levels.bounds(0.0)
    torch.testing.assert_close((levels.step * lowest).expand(4, 1), values[:, :1])
    torch.testing.assert_close((levels.step * highest).expand(4, 1), values[:, -1:])
    assert float((values / levels.step).abs().max()) <= 2 * grid.largest_level(bits) + 1


@every_grid
def test_the_nearest_level_is_the_nearest(name, bits):
    _, levels, values = placed(name, bits)
    weights = torch.rand(4, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 5 - 2.5
    found = (levels.values(levels.nearest(weights)) - weights).abs()
    least = (values[:, None, :] - weights[..., None]).abs().min(-1).values
    torch.testing.assert_close(found, least)
    codes = torch.arange(2**bits, dtype=torch.float64).expand(4, -1)
    assert torch.equal(levels.nearest(values), codes)  # weights that lie on the grid stay


@every_grid
def test_weights_within_a_cell_are_rounded_to_its_level(name, bits):
    _, levels, values = placed(name, bits)
    codes = torch.arange(2**bits, dtype=torch.float64).expand(4, -1)
    low, high = levels.cell(codes, 0.5, 0.5)
    inside, outside = torch.clone(codes), codes[:, 1:]
    for part in (0.01, 0.5, 0.99):
        weights = levels.step * (low + part * (high - low))
        assert torch.equal(levels.nearest(weights), inside)
    assert torch.equal(levels.nearest(levels.step * (low + 1e-6))[:, 1:], outside)
    assert ((levels.step * low <= values) & (values <= levels.step * high)).all()


@every_grid
def test_levels_side_by_side_are_those_of_each(name, bits):
    _, levels, values = placed(name, bits)
    parts = [levels.map(lambda tensor, row=row: tensor[row : row + 1]) for row in range(4)]
    joined = type(levels).join(parts, 0)
    codes = torch.arange(2**bits, dtype=torch.float64).expand(4, -1)
    torch.testing.assert_close(joined.values(codes), values)
    torch.testing.assert_close(joined.nearest(values + 1e-9), codes)


@every_grid
def test_its_integer_form_says_the_same_weights(name, bits):
    grid, levels, values = placed(name, bits)
    form = grid.integer_form(bits)
    if form is None:
        steps = values.diff(dim=1)
        equal = torch.allclose(steps, steps[:, :1].expand_as(steps))
        assert not equal or grid.zero_point_dtype.is_floating_point  # nothing keeps equal steps from integers
        return
    codes = torch.arange(2**bits, dtype=torch.float64).expand(4, -1)
    if form.offset is None:
        offset = grid.zero_points(LOW, levels.step, bits).double()
        assert form.steps == 1
    else:
        offset = torch.full((4, 1), float(form.offset), dtype=torch.float64)
    torch.testing.assert_close(levels.step / form.steps * (form.steps * codes - offset), values)
    integers = form.steps * codes - offset
    for width in (4, 8, 16):
        fits = bool(integers.min() >= -(2 ** (width - 1)) and integers.max() < 2 ** (width - 1))
        assert fits or not form.fits_signed(bits, width)


@every_grid
@pytest.mark.parametrize("granularity", ["tensor", "channel", 7])
def test_what_is_stored_is_counted_and_comes_back(name, bits, granularity):
    torch.manual_seed(bits)
    layer = nn.Linear(19, 5, bias=False)
    scheme = WeightScheme(bits, granularity, name)
    rows = quantize_rows(layer.weight.detach(), scheme)
    assert torch.equal(unpack_codes(pack_codes(rows.codes, bits), bits, rows.codes.numel()).view(5, 19), rows.codes)
    packed = pack_layer(layer, rows)
    assert torch.equal(packed.weight, rows.dequantize(packed.weight.dtype))
    scales = {"tensor": 1, "channel": 5, 7: 15}[granularity]
    counted = grid_named(name).stored_bits(5 * 19, scales, bits, 16)
    assert stored_bytes(nn.Sequential(packed)).packed * 8 == counted


@every_grid
def test_ranges_of_nothing_are_nothing_and_scales_that_do_not_fit_are_refused(name, bits):
    assert not quantize_rows(torch.zeros(2, 6), WeightScheme(bits, "channel", name)).dequantize().any()
    with pytest.raises(ValueError, match="does not fit float16"):
        grid_named(name).fit(-1e9 * torch.ones(1), 1e9 * torch.ones(1), bits, "float16")


def test_what_is_no_grid_is_refused():
    for wrong in (Grid, "half", None):
        with pytest.raises(TypeError, match="instance of a subclass of Grid"):
            register_grid(wrong)
