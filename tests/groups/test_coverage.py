"""How many of a model's parameters are quantized, and what is said where that is little."""

import warnings

import pytest
import torch
from helpers.jobs import make_job
from torch import nn

from lightning_mpq.groups.groups import find_groups


class Mixer(nn.Module):
    """Holds a weight that nobody knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(width, width) / width**0.5)

    def forward(self, x):
        return x @ self.mix


def mixed(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), Mixer(width), nn.LayerNorm(width), nn.Linear(width, 3))


def test_too_little_is_one_warning_that_names_the_rest_and_the_way_in():
    with pytest.warns(UserWarning, match=r"Only 176 of 483 parameters \(36.4 %\)") as found:
        groups = find_groups(mixed(16))
    (text,) = [str(warning.message) for warning in found]
    assert "1 x Mixer ('1'), 256" in text
    assert "register_layer(TYPE, like=nn.Linear)" in text
    assert (groups.coverage.quantized, groups.coverage.total) == (176, 483)
    assert groups.coverage.rest == {"Mixer": (("1",), 256)}


@pytest.mark.parametrize(
    "computed",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.weight_norm,
        lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    ],
)
def test_of_a_computed_weight_is_said_how_it_becomes_a_plain_one(computed):
    model = nn.Sequential(nn.Sequential(computed(nn.Linear(8, 16))), nn.ReLU(), nn.Linear(16, 3))
    with pytest.warns(UserWarning, match="can be quantized") as found:
        groups = find_groups(model)
    (text,) = [str(warning.message) for warning in found if "can be quantized" in str(warning.message)]
    assert "1 x Linear whose weight is computed ('0.0'), 128" in text
    assert "remove_parametrizations" in text
    assert "register_layer" not in text
    assert groups.coverage.rest == {"Linear whose weight is computed": (("0.0",), 128)}


def test_both_ways_are_said_where_there_are_both():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 16)), Mixer(16), nn.Linear(16, 3))
    with pytest.warns(UserWarning, match=r"register_layer\(TYPE, like=nn.Linear\).*remove_parametrizations"):
        find_groups(model)


def test_nothing_is_said_of_enough_of_biases_or_of_what_is_meant_to_stay():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_groups(nn.Sequential(nn.Linear(64, 64), Mixer(8))).coverage.share > 0.9
        assert find_groups(nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4))).coverage.share == 8 / 20
        kept = find_groups(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), keep_float=["1"])
        assert find_groups(mixed(16), keep_float=["1"]).coverage.rest == {}
    assert kept.coverage.share == 16 / 40


def test_a_shared_weight_counts_once():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    model[1].weight = model[0].weight
    assert (find_groups(model).coverage.quantized, find_groups(model).coverage.total) == (24, 24)


def test_a_job_warns_once_and_its_report_says_it():
    torch.manual_seed(0)
    data = [(torch.randn(8, 8), torch.randint(0, 3, (8,))) for _ in range(2)]
    with pytest.warns(UserWarning, match="can be quantized") as found:
        outcome = make_job(5.0).run(mixed(16), data, lambda: {})
    assert sum("can be quantized" in str(warning.message) for warning in found) == 1
    assert str(outcome.report.coverage) == "176 of 483 parameters (36.4 %)"
