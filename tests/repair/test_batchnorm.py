"""BatchNorm re-estimation against plain averages over the same batches."""

import pytest
import torch
from helpers.state import state_of
from torch import nn

from lightning_mpq.repair.batchnorm import measure_batchnorm, reestimate_batchnorm


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4))


def batches(count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 2, 6, 6, generator=generator) for _ in range(count)]


def test_statistics_are_the_average_over_batches():
    model = network()
    assert reestimate_batchnorm(model, batches()) == 1
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches()]
    mean = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variance = torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


def test_later_layers_see_inputs_normalised_by_batch_not_by_dropout_noise():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    data = [torch.randn(64, 4)]
    reestimate_batchnorm(model, data)
    torch.testing.assert_close(model[1].running_mean, data[0].mean(0))


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_momentum_come_back(training):
    model = network().train(training)
    model[2].eval()
    reestimate_batchnorm(model, batches())
    assert [m.training for m in model.modules()] == [training, training, training, False, training, training]
    assert model[1].momentum == 0.1


def test_a_failing_batch_leaves_the_statistics_as_they_were():
    model = network()
    model(batches()[0])
    before = state_of(model)
    with pytest.raises(TypeError, match="does not take the input of batch 2"):
        reestimate_batchnorm(model, [batches()[0], torch.randn(1, 7, 6, 6)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_batch_is_a_sentence_and_no_batchnorm_is_no_work():
    model = network()
    with pytest.raises(ValueError, match="at least one calibration batch"):
        reestimate_batchnorm(model, [])
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert reestimate_batchnorm(nn.Linear(2, 2), []) == 0


def trained() -> nn.Sequential:
    """A network whose running statistics come from other data than the calibration batches."""
    model = network().train()
    for batch in [3 * torch.randn(16, 2, 6, 6, generator=torch.Generator().manual_seed(7)) + 1] * 40:
        model(batch)
    return model.eval()


def test_with_statistics_from_before_an_unchanged_network_keeps_its_own():
    model = trained()
    before = measure_batchnorm(model, batches())
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    reestimate_batchnorm(model, batches(), before=before)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)


def test_with_statistics_from_before_a_scaled_and_shifted_layer_is_followed_exactly():
    """If a channel comes in stretched by s and shifted by t, its mean and variance are known in closed form."""
    model = trained()
    before = measure_batchnorm(model, batches())
    mean, variance = model[1].running_mean.clone(), model[1].running_var.clone()
    bias = model[0].bias.detach().clone()
    with torch.no_grad():
        model[0].weight.mul_(1.5)
        model[0].bias.mul_(1.5).add_(0.25)
    reestimate_batchnorm(model, batches(), before=before)
    sample_mean = before["1"].mean
    assert not torch.allclose(sample_mean, mean, atol=0.1)  # another sample than the network was trained on
    torch.testing.assert_close(model[1].running_mean, mean + 0.5 * sample_mean + 0.25)
    torch.testing.assert_close(model[1].running_var, variance * 1.5**2)
    assert not torch.equal(model[0].bias, bias)


def test_measuring_leaves_the_statistics_as_they_were():
    model = trained()
    before = state_of(model)
    measured = measure_batchnorm(model, batches())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    reestimate_batchnorm(model, batches())
    assert torch.equal(model[1].running_mean, measured["1"].mean)
    assert torch.equal(model[1].running_var, measured["1"].variance)


def test_a_channel_that_did_not_vary_before_takes_its_present_variance():
    model = trained()
    with torch.no_grad():
        model[0].weight[1] = 0
        before = measure_batchnorm(model, batches())
        model[0].weight[1] = 0.3
    reestimate_batchnorm(model, batches(), before=before)
    now = measure_batchnorm(model, batches())["1"]
    torch.testing.assert_close(model[1].running_var[1], now.variance[1])


def test_statistics_of_another_network_are_refused():
    with pytest.raises(ValueError, match="BatchNorm layer '1'"):
        reestimate_batchnorm(trained(), batches(), before={})


@pytest.mark.filterwarnings("ignore:A batch, or a chunk")
def test_statistics_of_a_layer_that_no_batch_has_any_for_stay_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    model.idle = nn.BatchNorm1d(2)
    with torch.no_grad():
        model[1].running_mean.normal_()
        model.idle.running_mean.normal_()
    before = [layer.running_mean.clone() for layer in (model[1], model.idle)]
    assert reestimate_batchnorm(model, [torch.randn(1, 3)], forward_fn=lambda m, x: m[1](m[0](x))) == 2
    assert all(torch.equal(layer.running_mean, old) for layer, old in zip((model[1], model.idle), before, strict=True))
