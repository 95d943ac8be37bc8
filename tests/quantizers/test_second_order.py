"""Error feedback against the textbook recursion in float64, and what holds for any weight, moment and scheme."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.grids.uniform import UniformLevels
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.quantizers import InputMoment, QuantizedRows, quantize_rows, round_rows
from lightning_mpq.quantizers.clip_search import rank_trials, trial_ratios, trial_scales
from lightning_mpq.quantizers.error_feedback import ErrorFeedback
from lightning_mpq.quantizers.nearest import fit_scale, weight_ranges
from lightning_mpq.schemes import WeightScheme

schemes = st.builds(
    WeightScheme,
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel", 1, 3, 4, 64]),
    grid=st.sampled_from(DEFAULT_GRIDS),
    clip=st.sampled_from(["absmax", "mse", "moment", 0.7]),
    scale_dtype=st.sampled_from(["bfloat16", "float32"]),
    rounding=st.sampled_from(["nearest", "second_order"]),
)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 14))  # groups, rows of each, columns


def make(parts: int, height: int, columns: int, seed: int, samples: int = 40) -> tuple[Tensor, Tensor]:
    """Return a weight [parts * height, columns] and a moment of correlated inputs with a mean, in float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(parts * height, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(parts, columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(parts, samples, columns, generator=generator, dtype=torch.float64) @ mixing + 1
    return rows, inputs.mT @ inputs / samples


def error_of(quantized: QuantizedRows, rows: Tensor, moment: Tensor) -> Tensor:
    """e M e^T of each row, computed part by part."""
    error = (quantized.dequantize(torch.float64) - rows).chunk(len(moment))
    return torch.cat([((part @ m) * part).sum(1) for part, m in zip(error, moment, strict=True)])


def recursion(row: Tensor, moment: Tensor, damping: float, levels: list[Tensor]) -> Tensor:
    """Round one row as in Optimal Brain Quantization (Frantar et al. 2022, eq. 4 and 5) in a fixed order.

    The inverse of the Hessian over the columns that are left is updated by Gaussian elimination at each step; no
    Cholesky factor is involved. ``levels[j]`` are all values that column j may take.
    """
    hessian = moment + damping * moment.diagonal().mean() * torch.eye(len(row), dtype=row.dtype)
    left = hessian.diagonal().sub(damping * moment.diagonal().mean()).argsort(descending=True, stable=True).tolist()
    inverse, weights, rounded = torch.linalg.inv(hessian), row.clone(), torch.empty_like(row)
    while left:
        j = left.pop(0)
        rounded[j] = levels[j][(levels[j] - weights[j]).abs().argmin()]
        weights -= (weights[j] - rounded[j]) / inverse[j, j] * inverse[:, j]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return rounded


@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", 5])
@pytest.mark.parametrize(
    ("parts", "height", "columns", "bits"),
    [(1, 4, 70, 3), (3, 2, 9, 2), (5, 1, 4, 8), (2, 2, 12, 4), (1, 2, 40, 5), (1, 3, 7, 6), (2, 1, 33, 7)],
)
def test_codes_are_those_of_the_textbook_recursion(grid, granularity, parts, height, columns, bits):
    rows, moment = make(parts, height, columns, seed=columns, samples=4 * columns)
    scheme = WeightScheme(bits, granularity, grid, scale_dtype="float32", rounding="second_order")
    scale, zero_point = fit_scale(*weight_ranges(rows, scheme), scheme)
    factor = ErrorFeedback.factorise(moment, 0.01, torch.float64)

    def every_weight(values: Tensor) -> Tensor:
        block = granularity if isinstance(granularity, int) else columns
        index = torch.arange(columns) // block
        return values.double().expand(len(rows), -1)[:, index].unflatten(0, (parts, height))

    steps = every_weight(scale)
    if zero_point is None:
        offsets = torch.full_like(steps, 2 ** (bits - 1) - {"symmetric": 0, "half": 0.5}[grid])
    else:
        offsets = every_weight(zero_point)

    def of_blocks(values: Tensor) -> Tensor:
        return values.double().expand(len(rows), -1).unflatten(0, (parts, height))

    given = of_blocks(scale)
    offset = offsets[..., : given.shape[2]] if zero_point is None else of_blocks(zero_point)
    levels = UniformLevels(given, offset, torch.full_like(given[..., :1], 2**bits - 1))
    block = granularity if isinstance(granularity, int) else None
    codes, loss, errors, _ = factor.round(rows.unflatten(0, (parts, height)), levels, block)
    values = steps * (codes - offsets)
    for part in range(parts):
        damped = moment[part] + 0.01 * moment[part].diagonal().mean() * torch.eye(columns)
        for row in range(height):
            levels = [
                s * (torch.arange(2**bits) - o) for s, o in zip(steps[part, row], offsets[part, row], strict=True)
            ]
            weight = rows[part * height + row]
            expected = recursion(weight, moment[part], 0.01, levels)
            torch.testing.assert_close(values[part, row], expected)
            error = expected - weight
            unit = moment[part].diagonal().mean()
            torch.testing.assert_close(loss[part, row], error @ damped @ error / unit)
            torch.testing.assert_close(errors[part, row], error @ moment[part] @ error)


def test_on_average_it_beats_nearest_by_far_and_comes_near_to_the_best_of_all_codes():
    """Brute force over all 4^6 codes of each row, at the same scales."""
    rows, moment = make(1, 12, 6, seed=3)
    scheme = WeightScheme(2, grid="half", scale_dtype="float32", rounding="second_order")
    found, nearest = round_rows(rows, moment, [scheme, WeightScheme(2, grid="half", scale_dtype="float32")])
    every = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 6) - 1.5
    best = torch.zeros(12, dtype=torch.float64)
    for number, row in enumerate(rows):
        errors = found.quantized.scale[number].double() * every - row
        best[number] = ((errors @ moment[0]) * errors).sum(1).min()
    errors = error_of(found.quantized, rows, moment)
    assert (errors >= best * (1 - 1e-9)).all()
    least = float(best.sum())
    assert found.error - least < 0.4 * (nearest.error - least)


@settings(max_examples=60)
@given(shapes, schemes, st.integers(0, 10**6))
def test_no_row_is_worse_than_nearest_at_its_own_scale(shape, scheme, seed):
    rows, moment = make(*shape, seed)
    rounded = round_rows(rows, moment, [scheme])[0]
    quantized = rounded.quantized
    errors = error_of(quantized, rows, moment)
    torch.testing.assert_close(rounded.error, float(errors.sum()), rtol=1e-6, atol=1e-12)
    blocks = quantized.scale.shape[1]
    block = scheme.granularity if isinstance(scheme.granularity, int) else shape[2]
    spread = quantized.scale.double().repeat_interleave(block, 1)[:, : shape[2]]
    assert blocks == -(-shape[2] // block)
    if quantized.zero_point is None:
        offset = torch.tensor(2 ** (scheme.bits - 1) - (0.5 if scheme.grid == "half" else 0), dtype=torch.float64)
    else:
        offset = quantized.zero_point.double().repeat_interleave(block, 1)[:, : shape[2]]
    levels = torch.arange(2**scheme.bits, dtype=torch.float64)
    distances = (spread[..., None] * (levels - offset[..., None]) - rows[..., None]).abs()
    nearest = QuantizedRows(distances.argmin(-1).to(torch.uint8), quantized.scale, quantized.zero_point, scheme)
    # A tie between two levels is broken either way, and then either of the two is the nearest.
    tie = (distances.sort(-1).values[..., :2].diff().squeeze(-1).abs() < 1e-9).any(1)
    assert ((errors <= error_of(nearest, rows, moment) * (1 + 1e-6) + 1e-12) | tie).all()


@settings(max_examples=40)
@given(shapes, schemes, st.integers(0, 10**6))
def test_shapes_ranges_and_scheme_are_those_asked_for(shape, scheme, seed):
    rows, moment = make(*shape, seed)
    quantized = round_rows(rows.float(), moment, [scheme])[0].quantized
    assert quantized.scheme == scheme
    assert quantized.codes.shape == rows.shape
    assert quantized.codes.dtype == torch.uint8
    assert int(quantized.codes.max()) < 2**scheme.bits
    assert quantized.scale.numel() == scheme.scale_count(*rows.shape)
    assert quantized.scale.dtype == getattr(torch, scheme.scale_dtype)
    assert (quantized.zero_point is None) == (scheme.grid != "asymmetric")


@settings(max_examples=30)
@given(shapes, schemes, schemes, st.integers(0, 10**6))
def test_schemes_rounded_together_do_not_see_each_other(shape, first, second, seed):
    rows, moment = make(*shape, seed)
    together = round_rows(rows, moment, [first, second])
    for scheme, rounded in zip((first, second), together, strict=True):
        alone = round_rows(rows, moment, [scheme])[0].quantized
        assert torch.equal(alone.scale, rounded.quantized.scale)
        torch.testing.assert_close(alone.dequantize(torch.float64), rounded.quantized.dequantize(torch.float64))


def test_without_correlation_nearest_is_best_and_stays():
    rows, _ = make(1, 6, 12, seed=2)
    moment = torch.diag(torch.rand(12, dtype=torch.float64) + 0.1)[None]
    for grid in DEFAULT_GRIDS:
        plain = WeightScheme(3, grid=grid)
        feedback = WeightScheme(3, grid=grid, rounding="second_order")
        quantized = round_rows(rows, moment, [feedback])[0].quantized
        assert torch.equal(quantized.codes, quantize_rows(rows, plain).codes)


def test_schemes_without_inputs_are_rounded_as_everywhere_else():
    rows, moment = make(1, 6, 12, seed=2)
    for scheme in (WeightScheme(3), WeightScheme(2, 5, "asymmetric", "mse"), WeightScheme(4, "tensor", "half", 0.6)):
        expected, found = quantize_rows(rows, scheme), round_rows(rows, moment, [scheme])[0].quantized
        assert torch.equal(found.scale, expected.scale)
        torch.testing.assert_close(found.dequantize(), expected.dequantize())


@pytest.mark.parametrize("samples", [0, 1, 5])
def test_moments_that_are_zero_or_singular_are_no_obstacle(samples):
    rows, _ = make(2, 3, 9, seed=4)
    inputs = torch.randn(2, samples, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs[:, :, 4] = 0  # a dead input
    moment = inputs.mT @ inputs / max(samples, 1)
    scheme = WeightScheme(3, rounding="second_order")
    found, nearest = round_rows(rows, moment, [scheme, WeightScheme(3)])
    assert found.error <= nearest.error
    if samples == 0:
        assert torch.equal(found.quantized.codes, nearest.quantized.codes)
    dead = found.quantized.codes[:, 4] == nearest.quantized.codes[:, 4]
    assert dead.all()  # nothing leaks into what has no effect


def test_one_part_without_inputs_does_not_touch_the_others():
    rows, moment = make(2, 3, 9, seed=4)
    moment[0] = 0
    scheme = WeightScheme(2, grid="half", rounding="second_order")
    both = round_rows(rows, moment, [scheme])[0].quantized
    alone = round_rows(rows[3:], moment[1:], [scheme])[0].quantized
    assert torch.equal(both.codes[3:], alone.codes)


def test_where_nothing_ever_comes_in_the_weight_error_decides():
    rows, moment = make(2, 3, 9, seed=4)
    moment[0] = 0
    scheme = WeightScheme(2, grid="half", clip="moment", rounding="second_order")
    found = round_rows(rows, moment, [scheme])[0]
    expected = round_rows(rows[:3], torch.eye(9)[None].double(), [scheme])[0]
    assert torch.equal(found.quantized.codes[:3], expected.quantized.codes)
    assert torch.equal(found.quantized.scale[:3], expected.quantized.scale)
    live = error_of(found.quantized, rows, moment)[3:].sum()
    assert found.error == pytest.approx(float(live), rel=1e-4)


def test_a_grouped_convolution_is_rounded_like_a_linear_layer_per_group():
    torch.manual_seed(0)
    conv, images = nn.Conv2d(6, 8, 3, groups=2, padding=1), torch.randn(4, 6, 7, 7) + 0.5
    scheme = WeightScheme(3, grid="half", clip="moment", rounding="second_order")
    whole = InputMoment.of_layer(conv)
    whole.update(conv, images, conv(images).shape)
    rounded = round_rows(weight_rows(conv), whole.matrix(), [scheme])[0].quantized.dequantize()
    for part in range(2):
        linear = nn.Linear(27, 4)
        unfolded = nn.functional.unfold(images[:, 3 * part : 3 * part + 3], 3, padding=1).mT
        moment = InputMoment.of_layer(linear)
        moment.update(linear, unfolded, torch.Size([*unfolded.shape[:2], 4]))
        own = weight_rows(conv)[4 * part : 4 * part + 4]
        expected = round_rows(own, moment.matrix(), [scheme])[0].quantized.dequantize()
        torch.testing.assert_close(rounded[4 * part : 4 * part + 4], expected)


def test_the_range_is_the_one_with_the_least_output_error():
    """Each ratio on its own, through the scheme's numeric clip, is the independent reference."""
    rows, moment = make(1, 8, 10, seed=7)
    for grid in DEFAULT_GRIDS:
        searched = round_rows(rows, moment, [WeightScheme(2, grid=grid, clip="moment")])[0].quantized
        ratios = trial_ratios(searched.scheme)
        each = [round_rows(rows, moment, [WeightScheme(2, grid=grid, clip=ratio)])[0].quantized for ratio in ratios]
        least = torch.stack([error_of(quantized, rows, moment) for quantized in each]).amin(0)
        torch.testing.assert_close(error_of(searched, rows, moment), least)


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_the_search_comes_close_to_the_best_of_all_ranges_under_error_feedback(grid, granularity):
    """It tries about half of them. Each ratio on its own, through the numeric clip, is the independent reference."""
    rows, moment = make(2, 12, 30, seed=8, samples=200)
    best = WeightScheme(2, granularity, grid, clip="moment", rounding="second_order")
    found = float(error_of(round_rows(rows, moment, [best])[0].quantized, rows, moment).sum())
    fixed = [WeightScheme(2, granularity, grid, ratio, rounding="second_order") for ratio in trial_ratios(best)]
    errors = torch.stack([error_of(rounded.quantized, rows, moment) for rounded in round_rows(rows, moment, fixed)])
    least = errors.sum(1).min() if granularity == "tensor" else errors.amin(0).sum()
    absmax = errors[0].sum()
    assert found < least + 0.1 * (absmax - least)
    if granularity != 4:  # blocks have ranges of their own, which may be better than any common one
        assert found >= least * (1 - 1e-9)


def test_the_ranking_of_each_block_is_by_its_own_weighted_error():
    rows, moment = make(2, 3, 10, seed=5)
    costs = moment.diagonal(dim1=1, dim2=2)
    scheme = WeightScheme(3, 4, "asymmetric", "moment")
    every = trial_scales(rows, scheme)
    ranked = every.take(rank_trials(rows, costs, scheme, every)[:2])
    for row in range(6):
        for block, columns in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            sums = []
            for scale, zero in zip(every.scale[:, row, block], every.zero_point[:, row, block], strict=True):
                levels = float(scale) * (torch.arange(8, dtype=torch.float64) - float(zero))
                error = (levels - rows[row, columns, None]).abs().amin(1)
                sums.append(float((costs[row // 3, columns] * error.square()).sum()))
            order = sorted(range(len(sums)), key=sums.__getitem__)[:2]
            assert ranked.scale[:, row, block].tolist() == every.scale[order, row, block].tolist()


def test_rows_that_share_a_scale_count_by_their_weight():
    rows = torch.tensor([[4.0, 0.1, 0.2, -0.3], [0.5, -0.4, 0.3, 0.5]])
    scheme = WeightScheme(2, "tensor", "half", "moment")
    by_first, by_second = (
        round_rows(rows, torch.eye(4)[None], [scheme], row_weights=torch.tensor(weights))[0].quantized.scale
        for weights in ([1.0, 0.0], [0.0, 1.0])
    )
    assert by_second < by_first


@pytest.mark.parametrize("granularity", ["tensor", "channel", 4])
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_a_row_of_zeros_stays_zero(grid, granularity):
    rows, moment = make(1, 3, 8, seed=1)
    rows[:] = 0
    scheme = WeightScheme(3, granularity, grid, "moment", rounding="second_order")
    assert (round_rows(rows, moment, [scheme])[0].quantized.dequantize() == 0).all()


def test_one_huge_outlier_does_not_touch_other_channels():
    rows, moment = make(1, 4, 16, seed=5)
    spoiled = rows.clone()
    spoiled[2, 3] = 1e12
    scheme = WeightScheme(4, clip="moment", rounding="second_order")
    clean, dirty = (round_rows(each, moment, [scheme])[0].quantized.dequantize() for each in (rows, spoiled))
    assert torch.equal(clean[[0, 1, 3]], dirty[[0, 1, 3]])
    assert torch.isfinite(dirty).all()


def test_non_finite_numbers_are_refused():
    rows, moment = make(1, 2, 3, seed=0)
    scheme = WeightScheme(4, rounding="second_order")
    with pytest.raises(NonFiniteError, match="1 of 6 weights"):
        round_rows(
            rows.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan).double()), moment, [scheme]
        )
    with pytest.raises(NonFiniteError, match="moment of the layer's inputs"):
        round_rows(rows, moment * torch.inf, [scheme])


def test_what_does_not_fit_is_refused_with_a_sentence():
    rows, moment = make(1, 2, 3, seed=0)
    with pytest.raises(ValueError, match="Expected a moment of shape"):
        round_rows(rows, moment[:, :2, :2], [WeightScheme(4)])
    with pytest.raises(ValueError, match="not positive semidefinite"):
        round_rows(rows, -moment, [WeightScheme(4, rounding="second_order")])
    with pytest.raises(ValueError, match="Round it with round_candidates"):
        quantize_rows(rows, WeightScheme(4, clip="moment"))
