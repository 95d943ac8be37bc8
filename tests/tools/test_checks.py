"""Values are shown in messages whatever their size; tensors by type and shape."""

import pytest
import torch

import lightning_mpq as mpq
from lightning_mpq.tools.checks import check_one_of, shown


@pytest.mark.parametrize(
    "value", [torch.zeros(100, 100), "x" * 10**6, list(range(10**5)), {"a": torch.zeros(9)}, 10**999]
)
def test_nothing_is_shown_at_length(value):
    assert len(shown(value)) < 300
    assert "0., 0." not in shown(value)


def test_short_values_are_shown_as_they_are():
    for value in ("gurobi", 3, 2.5, None, ["a", 1], {"bits": 3}, True):
        assert shown(value) == repr(value)
    assert shown(torch.zeros(2, 3)) == "a Tensor [2, 3] of torch.float32"


def test_a_tensor_is_none_of_the_choices():
    with pytest.raises(ValueError, match=r"must be one of 'highs', got a Tensor \[4\]"):
        check_one_of("solver", torch.zeros(4), ["highs"])


@pytest.mark.parametrize(
    "refused",
    [
        lambda value: mpq.WeightScheme(value),
        lambda value: mpq.WeightScheme(3, value),
        lambda value: mpq.WeightScheme(3, grid=value),
        lambda value: mpq.BitPolicy({"0": value}),
        lambda value: mpq.register_grid(value),
        lambda value: mpq.register_layer(value, {"weight": "rows"}),
        lambda value: mpq.Budget(average_bits=value),
        lambda value: mpq.CandidateOptions(rounding=value),
        lambda value: mpq.MixedPrecisionQuantization(3.0, calibration_batches=value),
    ],
)
def test_a_tensor_in_the_wrong_place_is_not_printed(refused):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as caught:
        refused(torch.zeros(1000))
    assert len(str(caught.value)) < 500
