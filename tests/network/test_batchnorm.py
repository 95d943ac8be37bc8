"""What BatchNorm normalises by while a model is measured, and that it is as before afterwards."""

import pytest
import torch
from helpers.networks import convnet, images
from helpers.state import assert_state, state_of
from torch import nn

from lightning_mpq.network.batchnorm import batch_statistics, batchnorm_layers


def test_layers_without_running_statistics_are_none():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert list(batchnorm_layers(model)) == ["0"]


@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_batch_at_hand_without_dropout(training):
    model = convnet(dropout=True).train(training)
    before, modes = state_of(model), [module.training for module in model.modules()]
    with torch.no_grad(), batch_statistics(model):
        found = model(images(8)[0])
    hidden = model.conv(images(8)[0])
    mean, variance = hidden.mean((0, 2, 3), keepdim=True), hidden.var((0, 2, 3), unbiased=False, keepdim=True)
    expected = model.head(torch.relu((hidden - mean) / (variance + model.norm.eps).sqrt()).flatten(1))
    torch.testing.assert_close(found, expected)
    assert_state(model, before)
    assert [module.training for module in model.modules()] == modes
    assert "running_mean" not in vars(model.norm)


def test_averaged_statistics_count_every_batch_the_same():
    model, batches = convnet(), images(4, 9)
    with torch.no_grad(), batch_statistics(model, averaged=True):
        model.norm.reset_running_stats()
        for batch in batches:
            model(batch)
        hidden = [model.conv(batch) for batch in batches]
    torch.testing.assert_close(model.norm.running_mean, torch.stack([h.mean((0, 2, 3)) for h in hidden]).mean(0))
    assert model.norm.momentum == 0.1


class WithGate(nn.BatchNorm1d):
    def forward(self, input, gate=1.0):
        return super().forward(input) * gate


@pytest.mark.filterwarnings("ignore:A batch, or a chunk")
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, WithGate, nn.SyncBatchNorm])
def test_one_value_for_each_channel_is_normalised_by_the_running_statistics_and_does_not_count(kind):
    torch.manual_seed(0)
    layer, one, more = kind(3).eval(), torch.randn(1, 3), torch.randn(4, 3)
    layer.running_mean.normal_()
    before = state_of(layer)
    with batch_statistics(layer):
        torch.testing.assert_close(layer(one), (one - before["running_mean"]) / (1 + layer.eps) ** 0.5)
    assert_state(layer, before)
    with batch_statistics(layer, averaged=True):
        layer.reset_running_stats()
        for batch in (one, more):
            layer(batch)
    torch.testing.assert_close(layer.running_mean, more.mean(0))
    assert int(layer.num_batches_tracked) == 1
