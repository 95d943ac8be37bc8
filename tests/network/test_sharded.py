"""Models that FSDP has cut between two processes are whole again on both, and nothing of FSDP is left on them."""

import copy

import pytest
import torch
from helpers.cut_models import gathered
from torch import nn

from lightning_mpq.network.sharded import gather_whole, is_sharded


@pytest.mark.parametrize("kind", ["fsdp1", "fsdp2"])
def test_every_process_has_the_whole_model(pool, kind):
    for found in pool.run(gathered, kind):
        assert found["cut"]
        assert not found["still"]
        assert "are cut between processes" in found["refused"]
        assert found["types"][:4] == ["Sequential", "Embedding", "Linear", "BatchNorm1d"]
        assert all(found["equal"].values())
        assert found["tied"]
        assert found["outputs"]
        assert found["hooks"] == 0
        assert found["gradients"]


def test_a_model_that_nobody_cut_stays_what_it_is():
    model = nn.Sequential(nn.Linear(2, 2))
    before, weight = copy.deepcopy(model.state_dict()), model[0].weight
    assert not is_sharded(model)
    assert gather_whole(model) is model
    assert model[0].weight is weight
    assert torch.equal(before["0.weight"], weight)
    assert torch.is_grad_enabled()
