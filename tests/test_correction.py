"""BatchNorm re-estimation against plain averages over the same batches."""

import pytest
import torch
from torch import nn

from lightning_mpq.correction import reestimate_batchnorm


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
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(TypeError, match="does not take the input of batch 2"):
        reestimate_batchnorm(model, [batches()[0], torch.randn(1, 7, 6, 6)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_batch_is_a_sentence_and_no_batchnorm_is_no_work():
    model = network()
    with pytest.raises(ValueError, match="at least one calibration batch"):
        reestimate_batchnorm(model, [])
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert reestimate_batchnorm(nn.Linear(2, 2), []) == 0
