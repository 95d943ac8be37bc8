"""One sentence for all layers that were seen with few rows."""

import warnings

import pytest
import torch
from helpers.weight_uses import MixtureOfExperts, make
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.rounding.few_rows import say_few_tokens


def test_one_warning_names_the_worst_layer_and_says_how_many_samples_would_do():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    groups = mpq.find_groups(model)
    offered = mpq.make_candidates(groups, [4])
    with pytest.warns(UserWarning, match="rows") as said:
        mpq.round_candidates(model, list(torch.randn(20, 4).split(10)), groups, offered)
    assert len(said) == 1
    text = str(said[0].message)
    assert text.startswith("2 of 3 layers were seen with fewer than 4 rows a column, '2' with 20 rows")
    assert "for 16 columns" in text
    assert "4 times the calibration samples would do (64 rows)." in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpq.round_candidates(model, list(torch.randn(80, 4).split(10)), groups, offered)


def test_look_ups_need_no_rows():
    model = nn.Sequential(nn.Embedding(50, 16), nn.Flatten(), nn.Linear(16, 2))
    groups = mpq.find_groups(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpq.round_candidates(model, [torch.arange(100) % 50], groups, mpq.make_candidates(groups, [4]))


def test_experts_that_saw_few_tokens_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say_few_tokens({"mlp.up": ([40, 64], 8)})
    with pytest.warns(UserWarning, match="fewer") as said:
        say_few_tokens({"mlp.up": ([40, 0, 31], 8), "mlp.down": ([500, 500, 500], 4)})
    assert len(said) == 1
    assert "in mlp.up: 1 (0), 2 (31). Second-order rounding" in str(said[0].message)


@pytest.mark.filterwarnings("ignore:No output")
def test_rounding_says_it_of_fused_experts():
    model, (ids, _) = make(MixtureOfExperts)
    groups = mpq.find_groups(model)
    with pytest.warns(UserWarning, match="Experts saw fewer than 4 tokens a column"):
        mpq.round_candidates(model, [ids[:1]], groups, mpq.make_candidates(groups, [4]))
