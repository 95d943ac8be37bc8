"""Models whose layers wait for their first input."""

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.network.lazy import uninitialized_layer


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.LazyBatchNorm1d(affine=False), nn.LazyLinear(2))


POLICY = mpq.BitPolicy({"0": mpq.WeightScheme(4)})
BATCHES = [torch.randn(8, 3)]


def test_parameters_and_buffers_count() -> None:
    model = net()
    assert uninitialized_layer(model) == "1"
    model(BATCHES[0])
    assert uninitialized_layer(model) is None


@pytest.mark.parametrize(
    "step",
    [
        mpq.find_groups,
        lambda model: mpq.find_groups(model, batches=BATCHES),
        lambda model: mpq.profile(model, BATCHES),
        lambda model: mpq.estimate(model, BATCHES),
        lambda model: mpq.round_candidates(model, BATCHES, mpq.find_groups(nn.Sequential(nn.Linear(3, 4))), []),
        lambda model: mpq.quantize(model, POLICY, BATCHES),
    ],
)
def test_every_step_says_what_to_do_and_leaves_the_model(step) -> None:
    model = net()
    with pytest.raises(ValueError, match=r"The layer '1' of Sequential is not initialized yet; run the model once"):
        step(model)
    assert uninitialized_layer(model) == "1"
    assert type(model[0]) is nn.Linear
