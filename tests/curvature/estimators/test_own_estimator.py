"""An estimator that a user writes works wherever one of ours does: by hand, in the callback, with a cache."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from helpers.trainer import SmallClassifier, make_callback, trained
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.curvature.estimators import Measurement, Setting

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class OutputChange(mpq.Estimator):
    """Squared change of the outputs by each candidate alone, without pairs: half of it is the loss of Gaussian(1).

    Attributes:
        factor: What it is multiplied by.
    """

    factor: float = 1.0
    name: ClassVar[str] = "output_change"

    def start(self, setting: Setting) -> "Running":
        return Running(self, setting)


class Running:
    """Measures batches."""

    calls = 0

    def __init__(self, estimator: OutputChange, setting: Setting) -> None:
        self.estimator, self.setting = estimator, setting

    def measure(self, batch, generator: torch.Generator) -> Measurement:
        Running.calls += 1
        setting = self.setting
        with torch.no_grad():
            outputs = setting.evaluator.outputs(batch)
            rows = outputs.new_zeros(len(outputs), outputs.shape[1] * len(setting.wanted), len(setting.wanted))
            for place, candidate in enumerate(setting.wanted):
                errors = setting.everything.of_candidate(candidate)
                kept = {layer: setting.everything.weight(layer).clone() for layer in errors}
                for layer, error in errors.items():
                    setting.everything.weight(layer).add_(error)
                change = setting.evaluator.outputs(batch) - outputs
                for layer, weight in kept.items():
                    setting.everything.weight(layer).copy_(weight)
                rows[:, place * outputs.shape[1] : (place + 1) * outputs.shape[1], place] = change
        return Measurement(len(outputs), rows=self.estimator.factor**0.5 * rows)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def test_what_it_measures_is_what_the_taylor_model_predicts():
    net = network()
    data = torch.randn(40, 6, dtype=torch.float64)
    groups = mpq.find_groups(net)
    candidates = mpq.make_candidates(groups, [2, 3, 5], rounding="nearest", grids=["half"])
    rounded = mpq.round_candidates(net, data.split(10), groups, candidates)
    taylor = mpq.profile(
        net, data.split(10), groups=groups, rounded=rounded, estimator=OutputChange(), likelihood=mpq.Gaussian()
    )
    assert taylor.estimator == "output_change"
    outputs = net(data).detach()
    for candidate in taylor.candidates:
        policy = mpq.BitPolicy({candidate.group: candidate.scheme})
        packed = mpq.quantize(network(), policy, rounded=rounded)
        loss = (packed(data) - outputs).square().sum(1).mean() / 2
        index = taylor.candidates.index(candidate)
        assert float(taylor.curvature[index, index]) / 2 == pytest.approx(float(loss), rel=1e-6)
    assert torch.equal(taylor.curvature, torch.diag(taylor.curvature.diagonal()))


def test_its_results_are_cached_under_its_settings(tmp_path):
    data = torch.randn(40, 6, dtype=torch.float64).split(10)

    def measured(factor: float) -> tuple[mpq.TaylorModel, int]:
        before = Running.calls
        taylor = mpq.profile(
            network(), data, bits=[2, 4], estimator=OutputChange(factor), likelihood=mpq.Gaussian(), cache_dir=tmp_path
        )
        return taylor, Running.calls - before

    one, first = measured(1.0)
    again, second = measured(1.0)
    four, third = measured(4.0)
    assert (first, second, third) == (4, 0, 4)
    assert torch.equal(one.curvature, again.curvature)
    torch.testing.assert_close(four.curvature, 4 * one.curvature)


def test_it_reaches_the_callback(tmp_path):
    options = mpq.CurvatureOptions(estimator=OutputChange(), likelihood=mpq.Gaussian())
    mixed = make_callback(curvature=options, candidates=mpq.CandidateOptions(bits=(2, 4, 8)))
    _, module = trained(tmp_path, mixed)
    assert mixed.taylor.estimator == "output_change"
    assert isinstance(module, SmallClassifier)
    assert mixed.allocation.costs["average_bits"] <= 4.5


def test_what_is_no_estimator_is_refused_with_a_sentence():
    for wrong in (OutputChange, "output_change", None):
        with pytest.raises(ValueError, match="estimator must be one of 'fisher', .*an instance of a subclass of Estim"):
            mpq.profile(network(), [torch.randn(2, 6, dtype=torch.float64)], bits=[2], estimator=wrong)
