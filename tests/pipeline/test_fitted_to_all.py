"""Samples that have judged are fitted to as well, in the model that a job packs in the end."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.jobs import make_job
from helpers.state import same, state_of
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CurvatureOptions, RepairOptions, SelectionOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.quantizer import Quantizer
from lightning_mpq.repair.repair import Repair

DATA = [torch.randn(16, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
JOB = make_job(
    Budget(average_bits=6.0),
    curvature=CurvatureOptions(likelihood=Categorical(), statistics="frozen"),
    selection=SelectionOptions(rounds=0),
)


def network(normalised: bool) -> nn.Sequential:
    torch.manual_seed(0)
    between = (nn.BatchNorm1d(8), nn.Tanh()) if normalised else (nn.Tanh(),)
    model = nn.Sequential(nn.Linear(6, 8), *between, nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).train()
    for batch in DATA:
        model(batch)
    return model.eval()


def job(repair: RepairOptions) -> Pipeline:
    return Pipeline(replace(JOB.settings, repair=repair))


def packed_by(model: nn.Module, policy, data, options: RepairOptions) -> nn.Module:
    """Return a copy that is packed and repaired on some batches, with nothing held out."""
    twin = copy.deepcopy(model)
    calibration = Calibration(twin, data, likelihood=Categorical())
    Quantizer(calibration, list(policy.by_layer()), options, judged=False).pack(policy)
    return twin


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("measures", [False, True])
@pytest.mark.filterwarnings("ignore:Rounded layer after layer", "ignore:Measuring BatchNorm statistics")
def test_the_packed_model_is_fitted_to_all_samples(normalised, compared, measures, monkeypatch):
    monkeypatch.setattr(Quantizer, "keep_independent", lambda *_: None)  # rounded in sequence, whatever chance says
    model = network(normalised)
    given, repair = copy.deepcopy(model), RepairOptions(biases=False)
    pipeline = Pipeline(replace(JOB.settings, repair=repair, selection=SelectionOptions(3 if measures else 1, 0)))
    outcome = pipeline.run(model, DATA, dict if compared else None)
    policy = outcome.allocation.policy
    if normalised and torch.equal(model[1].running_mean, given[1].running_mean):  # they were found to do harm
        repair = replace(repair, batchnorm=False)
    assert same(state_of(model), state_of(packed_by(given, policy, DATA, repair)))
    fitted = hold_out(Calibration(given, DATA)).fitted.batches
    assert not same(state_of(model), state_of(packed_by(given, policy, fitted, repair)))


@pytest.mark.parametrize("step", ["biases", "batchnorm"])
def test_what_the_judging_samples_found_harmful_is_left_out(step, monkeypatch):
    monkeypatch.setattr(Repair, "refused", property(lambda self: (step,), lambda *_: None), raising=False)
    monkeypatch.setattr(Quantizer, "keep_independent", lambda *_: None)
    model = network(True)
    given = copy.deepcopy(model)
    outcome = job(RepairOptions(biases=True)).run(model, DATA)
    options = RepairOptions(biases=step != "biases", batchnorm=step != "batchnorm")
    assert same(state_of(model), state_of(packed_by(given, outcome.allocation.policy, DATA, options)))


def test_one_sample_leaves_nothing_to_judge_by_and_is_fitted_to():
    model = network(False)
    given, data = copy.deepcopy(model), [DATA[0][:1]]
    outcome = job(RepairOptions(biases=False)).run(model, data)
    expected = packed_by(given, outcome.allocation.policy, data, RepairOptions(biases=False))
    assert same(state_of(model), state_of(expected))


def test_an_error_while_it_is_fitted_to_all_leaves_the_float_model(monkeypatch):
    model = network(False)
    before = copy.deepcopy(model)

    def fails(self, calibration, *_):
        raise RuntimeError("no more memory")

    monkeypatch.setattr(Quantizer, "on_all", fails)
    with pytest.raises(RuntimeError, match="no more memory"):
        job(RepairOptions()).run(model, DATA)
    assert same(state_of(model), state_of(before))
