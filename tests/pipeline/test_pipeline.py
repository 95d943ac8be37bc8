"""The whole job without a Trainer: the comparison plan, the sums of the report, and what it refuses."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.jobs import batches, distinct_plans, make_job, network
from helpers.state import state_of
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from lightning_mpq.allocation import Budget
from lightning_mpq.errors import BudgetExceededError
from lightning_mpq.modules import packed_layers
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.network.loss_change import LossChange
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    RepairOptions,
    SelectionOptions,
)
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


NOTHING = RepairOptions(sequential=False, batchnorm=False, biases=False)


def test_divergence_and_task_loss_are_measured_as_defined():
    model, data = network(), batches()
    divergence = LossChange(Calibration(model, data, likelihood=Categorical()), "divergence")
    task = LossChange(Calibration(model, data, loss_fn=lambda m, b: cross_entropy(m(b[0]), b[1])), "task")
    images, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    with torch.no_grad():
        before = log_softmax(model(images), 1)
        assert divergence.measure() == pytest.approx(0, abs=1e-6)
        model[2].weight.mul_(0.7)
        after = log_softmax(model(images), 1)
    expected = (before.exp() * (before - after)).sum(1).mean()
    assert divergence.measure() == pytest.approx(float(expected), rel=1e-4)
    expected = (before - after).gather(1, labels[:, None]).mean()
    assert task.measure() == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("compare", [True, False])
def test_the_job_runs_without_a_trainer_and_reports_how_far_it_is(compare):
    model, told, validated = network(), [], []

    def evaluate() -> dict[str, float]:
        validated.append(len(packed_layers(model)))
        return {"packed": float(validated[-1])}

    pipeline = make_job(Budget(average_bits=6.0), progress=lambda fraction, message: told.append(fraction))
    outcome = pipeline.run(model, batches(), evaluate if compare else None)
    assert len(packed_layers(model)) == 3
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert validated == ([0] + [3] * distinct_plans(outcome) if compare else [])
    if compare:
        report = outcome.report
        json.dumps(report.to_dict(), allow_nan=False)
        assert sum(g.predicted_share for g in report.groups) == pytest.approx(outcome.allocation.predicted_loss)
        assert sum(g.weights for g in report.groups) == 48 + 64 + 24
        assert report.samples == 51
        rows = {(row.rounding, row.repaired): row.measured_loss for row in report.repair}
        assert list(rows) == [(r, done) for r in ("independent", "sequential") for done in ((), ("biases",))]
        assert report["chosen"].measured_frozen == rows["independent", ()]
        assert report["chosen"].above_chosen == report["chosen"].above_chosen_error == 0
        assert report.held_out == 10
        assert report["chosen"].measured_loss == rows["sequential", ("biases",)]
        assert min(rows.values()) > 0


@pytest.mark.parametrize("loss", ["divergence", "task"])
def test_the_first_batches_are_compared_with_the_float_model_on_these_alone(loss):
    model, data = network(), batches()
    given = {"likelihood": Categorical(), "loss_fn": lambda m, b: cross_entropy(m(b[0]), b[1])}
    change, alone = (LossChange(Calibration(model, part, **given), loss) for part in (data, data[:2]))
    with torch.no_grad():
        model[2].weight.mul_(0.7)
    assert change.measure(2) == pytest.approx(alone.measure(), rel=1e-12)
    assert change.measure() != pytest.approx(alone.measure(), rel=1e-3)


def test_a_policy_is_judged_as_it_is_when_packed_and_nothing_is_packed():
    judged, packed = network(), network()
    pipeline = make_job(Budget(average_bits=6.0))
    before = state_of(judged)
    report = pipeline.compare(pipeline.decide(judged, batches()), dict)
    assert all(torch.equal(value, before[name]) for name, value in judged.state_dict().items())
    assert not packed_layers(judged)
    expected = pipeline.run(packed, batches(), dict).report
    assert report.models == expected.models
    assert report.groups == expected.groups


def test_exact_hessian_and_fisher_agree_on_what_is_a_small_step():
    loss = {"loss_fn": lambda m, b: cross_entropy(m(b[0]), b[1]), "candidates": CandidateOptions(bits=(8,))}
    budget = Budget(average_bits=12)
    model = network()
    change = LossChange(hold_out(Calibration(model, batches(), loss_fn=loss["loss_fn"])).fitted, "task")
    outcome = make_job(
        budget, curvature=CurvatureOptions(estimator="hessian", shrink=False), repair=NOTHING, **loss
    ).run(model, batches())
    assert change.measure() == pytest.approx(outcome.allocation.predicted_loss, rel=0.05, abs=1e-6)


def test_no_data_and_quantized_models_are_refused():
    model = network()
    with pytest.raises(ValueError, match="Calibration needs at least one calibration batch, got none"):
        make_job(Budget(average_bits=8)).run(model, [])
    make_job(Budget(average_bits=8)).run(model, batches())
    with pytest.raises(ValueError, match="quantized already.*'0'"):
        make_job(Budget(average_bits=8)).run(model, batches())


@pytest.mark.parametrize("compare", [True, False])
def test_a_rounding_that_was_measured_to_be_worse_is_not_kept(monkeypatch, compare):
    def spoilt(model, batches, policy, **settings):
        return {
            layer: replace(
                quantize_rows(-weight_rows(model.get_submodule(layer)), WeightScheme(scheme.bits, grid=scheme.grid)),
                scheme=scheme,
            )
            for layer, scheme in policy.weights().items()
        }

    monkeypatch.setattr("lightning_mpq.repair.repair.round_sequentially", spoilt)
    model, data = network(), batches()
    with torch.no_grad():
        before = model(data[0][0])
    outcome = make_job(6.0).run(model, data, dict if compare else None)
    with torch.no_grad():
        assert (model(data[0][0]) - before).abs().max() < 0.2
    if compare:
        report = outcome.report
        assert report.repair[0].rounding == "sequential"
        assert report.repair[-1].rounding == "independent"
        assert report["chosen"].measured_loss == report.repair[-1].measured_loss < report.repair[0].measured_loss / 10


@pytest.mark.parametrize("compared", [False, True])
def test_a_model_that_takes_more_than_its_budget_stays_in_float(compared, monkeypatch):
    model = network()
    job = make_job(Budget(average_bits=6), candidates=CandidateOptions(bits=(2, 4), rounding="nearest"))
    monkeypatch.setattr("lightning_mpq.pipeline.planning.refuse_exceeded", exceeded)
    decision = job.decide(model, batches())
    finish = partial(job.compare, decision, lambda: {}, keep=True)
    if not compared:
        finish = partial(decision.quantizer.pack, decision.allocation.policy)
    with pytest.raises(BudgetExceededError, match="too much"):
        finish()
    assert not packed_layers(model)


def exceeded(model: nn.Module, **known: object) -> None:
    assert packed_layers(model)
    raise BudgetExceededError("too much")


def test_the_report_says_how_stable_the_policy_is():
    job = make_job(Budget(average_bits=6), selection=SelectionOptions(policies=1, rounds=0, resamples=3))
    outcome = job.run(network(), batches(), lambda: {})
    assert outcome.report is not None
    assert outcome.report.solver["stability"] == outcome.allocation.stability(3).to_dict()
    assert "stability/kept" in outcome.report.scalars()
    silent = replace(job.settings, selection=SelectionOptions(policies=1, rounds=0, resamples=0))
    report = Pipeline(silent).run(network(), batches(), lambda: {}).report
    assert report is not None
    assert report.solver["stability"] is None
    fewest = replace(job.settings, budget=Budget(within_uniform=(4, 1.0)))
    report = Pipeline(fewest).run(network(), batches(), lambda: {}).report
    assert report is not None
    assert report.solver["stability"] is None
