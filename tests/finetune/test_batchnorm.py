"""Frozen BatchNorm statistics: still in training mode, while scale and shift learn."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_mpq.finetune import freeze_batchnorm, unfreeze_batchnorm


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False))


def test_statistics_stand_still_and_the_rest_learns():
    net = network()
    keys = list(net.state_dict())
    assert freeze_batchnorm(net) == ["1"]
    assert freeze_batchnorm(net) == []
    net.train()
    assert net[2].training
    before = net[1].running_mean.clone()
    net(5 + torch.randn(4, 2, 5, 5)).square().sum().backward()
    assert torch.equal(net[1].running_mean, before)
    assert int(net[1].num_batches_tracked) == 0
    assert net[1].weight.grad.abs().sum() > 0
    assert list(net.state_dict()) == keys
    unfreeze_batchnorm(net)
    assert type(net[1]) is nn.BatchNorm2d
    net.train()(5 + torch.randn(4, 2, 5, 5))
    assert not torch.equal(net[1].running_mean, before)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_stay_frozen(how):
    net = network()
    freeze_batchnorm(net)
    assert not how(net).train()[1].training
