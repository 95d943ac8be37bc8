"""Second-order rounding of weights that lie on a grid already, are zero, dead or depthwise; and what it costs."""

import gc
from collections import Counter

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.quantizers import InputMoment, quantize_rows, round_rows
from lightning_mpq.quantizers.error_feedback import ErrorFeedback
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.schemes import WeightScheme


def inputs_moment(parts: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(parts, 60, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return ((inputs + 1).mT @ (inputs + 1) / 60).double()


@settings(max_examples=60)
@given(
    st.integers(2, 8),
    st.sampled_from(["tensor", "channel", 1, 5, 64]),
    st.sampled_from(DEFAULT_GRIDS),
    st.tuples(st.integers(1, 12), st.integers(1, 24)),
    st.integers(0, 10**6),
)
@example(4, "channel", "symmetric", (12, 24), 0)
@example(4, "channel", "half", (12, 24), 1)
def test_weights_on_a_grid_come_back_as_they_are(bits, granularity, grid, shape, seed):
    """Rounded to nearest by their largest weight, as other tools do, they are found again, whatever the inputs."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    on_grid = quantize_rows(weights, WeightScheme(bits, granularity, grid, scale_dtype="float32")).dequantize()
    again = quantize_rows(on_grid, WeightScheme(bits, granularity, grid, scale_dtype="float32")).dequantize()
    if not torch.allclose(again, on_grid, rtol=0, atol=1e-5):
        return  # an integer zero point has moved the range, so that the largest weight no longer tells it
    scheme = WeightScheme(bits, granularity, grid, "moment", scale_dtype="float32", rounding="second_order")
    found = round_rows(on_grid, inputs_moment(1, shape[1], seed), [scheme])[0].quantized.dequantize()
    torch.testing.assert_close(found, on_grid, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
def test_a_channel_of_zeros_stays_zero_and_leaves_the_others_alone(grid, bits):
    rows, moment = torch.randn(4, 9, generator=torch.Generator().manual_seed(bits)), inputs_moment(1, 9, bits)
    scheme = WeightScheme(bits, grid=grid, clip="moment", rounding="second_order")
    expected = round_rows(rows, moment, [scheme])[0].quantized.dequantize()
    rows[2] = expected[2] = 0
    assert torch.equal(round_rows(rows, moment, [scheme])[0].quantized.dequantize(), expected)


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_depthwise_convolution_is_rounded_like_a_linear_layer_for_each_channel(bits, multiplier):
    torch.manual_seed(bits)
    conv, images = nn.Conv1d(3, 3 * multiplier, 5, groups=3), torch.randn(20, 3, 12) + 0.5
    moment = InputMoment.of_layer(conv)
    moment.update(conv, images, conv(images).shape)
    schemes = offered_schemes([bits])
    found = round_rows(weight_rows(conv), moment.matrix(), schemes)
    for channel in range(3):
        windows = images[:, channel].unfold(1, 5, 1).flatten(0, 1).double()
        own = slice(channel * multiplier, (channel + 1) * multiplier)
        expected = round_rows(weight_rows(conv)[own], (windows.T @ windows / len(windows))[None], schemes)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.quantized.dequantize()[own], other.quantized.dequantize())


def test_a_moment_is_factorised_once_for_all_schemes_and_dropped_behind_its_layer(monkeypatch):
    model = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 9))
    groups = find_groups(model)
    factorised, left = Counter(), []
    plain = ErrorFeedback.factorise

    def watched(moment, *args):
        factorised[moment.shape[-1]] += 1
        left.append(sum(type(item) is InputMoment for item in gc.get_objects()))
        return plain(moment, *args)

    monkeypatch.setattr(ErrorFeedback, "factorise", watched)
    schemes = offered_schemes(range(2, 9), granularities=["channel", 4])
    round_candidates(model, [torch.randn(30, 6)], groups, make_candidates(groups, schemes=schemes))
    assert factorised == {6: 1, 7: 1, 8: 1}
    assert left == [2, 1, 0]
