"""Costs counted from packed tensors, and packed models that take more than was promised."""

from dataclasses import replace

import pytest
import torch
from helpers.taylor_models import taylor_of
from torch import nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.errors import BudgetExceededError
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.modules.recount import recounted, refuse_exceeded


@pytest.fixture
def packed():
    """A packed network with odd sizes and a shared weight, and what its policy was chosen by."""
    net = nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    net[3].weight = net[2].weight
    groups = find_groups(net)
    candidates = make_candidates(groups, range(2, 9), rounding="nearest", granularities=["channel", 3])
    allocation = allocate(taylor_of(groups, candidates), Budget(average_bits=9.5))
    pack_model(net, allocation.policy)
    return net, allocation


def test_what_was_promised_is_what_tensors_take(packed):
    net, allocation = packed
    assert recounted(net, allocation) == allocation.costs
    refuse_exceeded(net, allocation)


@pytest.mark.parametrize("name", ["average_bits", "bytes", "largest_group_bytes"])
def test_a_model_that_takes_more_is_refused(packed, name):
    net, allocation = packed
    own = allocation.costs[name]
    refuse_exceeded(net, replace(allocation, limits={name: own}))
    with pytest.raises(BudgetExceededError, match=f"takes {name}=.*counted from its tensors.*allows"):
        refuse_exceeded(net, replace(allocation, limits={name: own - 0.01}))


def test_more_scales_than_promised_are_found(packed):
    net, allocation = packed
    net[0].scale = torch.cat([net[0].scale, net[0].scale])
    with pytest.raises(BudgetExceededError, match="bytes"):
        refuse_exceeded(net, replace(allocation, limits={"bytes": allocation.costs["bytes"]}))
    with pytest.raises(ValueError, match="no budget to count by"):
        recounted(net, replace(allocation, preparation=None))
