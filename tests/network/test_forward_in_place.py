"""A forward or a loss that changes its inputs in place is measured as if it did not: batches are gone through often."""

import lightning as L
import pytest
import torch
from helpers.trainer import make_trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_mpq as mpq
from lightning_mpq.export.example_inputs import ExampleInputs
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.evaluator import Evaluator

DATA = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))


class Net(L.LightningModule):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.in_place, self.body = in_place, nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
        self.seen: list[float] = []

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.body(inputs.mul_(0.5) if self.in_place else inputs * 0.5)

    def training_step(self, batch, batch_idx):
        self.seen.append(float(batch[0].abs().sum()))
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def batches():
    data = DATA.clone()
    return [(part, (part[:, 0] > 0).long()) for part in data.split(16)]


def own(model, batch):
    return model(batch[0])


@pytest.mark.parametrize("forward_fn", [None, own])
@pytest.mark.parametrize("estimator", ["fisher", "gauss_newton", "secant", "hessian"])
def test_a_profile_is_that_of_the_batches_as_they_were_given(forward_fn, estimator):
    plain, data = batches(), batches()
    wanted, found = (
        mpq.profile(
            Net(change), given, bits=[2, 4], estimator=estimator, likelihood=mpq.Categorical(), forward_fn=forward_fn
        )
        for change, given in ((False, plain), (True, data))
    )
    torch.testing.assert_close(found.curvature, wanted.curvature)
    torch.testing.assert_close(found.gradient, wanted.gradient)
    assert all(torch.equal(one[0], other[0]) for one, other in zip(data, plain, strict=True))


def test_rounding_in_sequence_and_repair_too():
    policy = mpq.BitPolicy(dict.fromkeys(("body.0", "body.2"), mpq.WeightScheme(3, rounding="second_order")))
    plain, changed = (mpq.quantize(Net(change), policy, batches()) for change in (False, True))
    torch.testing.assert_close(changed.state_dict(), plain.state_dict())


def test_a_loss_is_measured_again_on_the_same_batch():
    evaluator, (batch, *_) = Evaluator(Calibration(Net(True), [])), batches()
    assert evaluator.loss(batch) == evaluator.loss(batch)


def test_training_gets_the_batch_that_was_tried_before_as_it_was(tmp_path):
    data = TensorDataset(DATA, (DATA[:, 0] > 0).long())
    module, before = Net(True), DATA[:16].abs().sum()
    callback = mpq.MixedPrecisionQuantization(budget=mpq.Budget(average_bits=5), calibration_batches=2, compare=False)
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, DataLoader(data, batch_size=16))
    assert module.seen[0] == pytest.approx(float(before))


def test_what_a_runtime_is_compared_on_stays():
    inputs = ExampleInputs.of(DATA[:2].clone())
    inputs.call(Net(True))
    assert torch.equal(inputs.args[0], DATA[:2])
