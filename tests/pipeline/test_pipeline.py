"""The whole job without a Trainer: the comparison plan, the sums of the report, and what it refuses."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import inf

import pytest
import torch
from helpers.jobs import make_job, profiled
from helpers.state import state_of
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from lightning_mpq.allocation import Budget
from lightning_mpq.errors import BudgetExceededError
from lightning_mpq.grids.registry import DEFAULT_GRIDS
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
    SolverOptions,
)
from lightning_mpq.pipeline.comparison import compared_policies
from lightning_mpq.pipeline.pipeline import Outcome, Pipeline
from lightning_mpq.pipeline.policy_selection import PolicySelection
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme
from lightning_mpq.tools.progress import StageTimer

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


NOTHING = RepairOptions(sequential=False, batchnorm=False, biases=False)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def distinct_plans(outcome: Outcome) -> int:
    """Return how many different plans a report is about."""
    policies = [*compared_policies(outcome.taylor, outcome.allocation).values(), outcome.allocation.policy]
    return len({policy.to_json() for policy in policies})


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16 + i, 6, generator=generator), torch.randint(3, (16 + i,), generator=generator))
        for i in range(count)
    ]


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


def passes_by_stage(job: Pipeline, model: nn.Module, data: list, evaluate) -> tuple[dict[str, float], Outcome]:
    """Return stage to forward passes over all data, those of copies of the model included."""
    passes: Counter[str] = Counter()
    stage = ["other"]

    class Counted(StageTimer):
        @contextmanager
        def stage(self, name: str):
            stage.append(name)
            with super().stage(name):
                yield
            stage.pop()

    samples = sum(len(inputs) for inputs, _ in data)
    model.register_forward_pre_hook(lambda module, args: passes.update({stage[-1]: len(args[0]) / samples}))
    outcome = Pipeline(job.settings, Counted()).run(model, data, evaluate)
    return dict(passes), outcome


def test_a_job_measures_the_float_model_once_and_no_policy_twice(monkeypatch):
    # Which simple policies come close enough to be packed before the choice, is chance here.
    monkeypatch.setattr(PolicySelection, "_is_better_as_packed", lambda *_: False)
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]
    model, groups = nn.Sequential(*layers, nn.Linear(8, 3)).eval(), 4
    data = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(4)]
    fitted, judging = 3 / 4, 1 / 4  # one batch of four is held out
    in_sequence = 2 * fitted + 1 / 4  # the float model and its rounded copy, and the order of layers on the first batch
    others_too = 1 / 4  # what is judged is measured on as many of the other samples
    measured = judging + others_too
    repaired = fitted + 2 * judging + others_too  # judged before and after
    both = repaired + others_too
    # Whether measuring statistics again helps, and so whether the loss is profiled twice, is chance here as well, and
    # whether it does so much harm that it is tried but once.
    monkeypatch.setattr("lightning_mpq.repair.repair.BEYOND_CHANCE", inf)
    curvature = CurvatureOptions(statistics="reestimated")
    job = make_job(Budget(average_bits=5.5), curvature=curvature, selection=SelectionOptions(rounds=0))
    found, outcome = passes_by_stage(job, model, data, dict)
    shared = outcome.allocation.additive_policy != outcome.allocation.policy
    kept = outcome.report.repair[-1]
    to_all = 2 + 1 / 4 if kept.rounding == "sequential" else 0.0
    to_all += 0.0 if "batchnorm" in kept.refused else 2.0  # statistics of either model
    others, trials = distinct_plans(outcome) - 1, len({str(row.bits) for row in outcome.report.trials})
    assert found == {
        "other": 1 / 4,  # whether the first batch uses every weight
        "round": fitted,
        "profile": pytest.approx(fitted + 1 / 4),  # a guess on the first batch what outputs mean
        "select": 1 / 4 + trials * repaired,  # outputs of the float model on as many of the others
        "quantize": judging + fitted + in_sequence,  # outputs, statistics
        "compare": others * (both + in_sequence + both)
        - shared * (both - measured)  # the additive policy, as profiled and repaired, is one of the trials
        + measured  # and so is the chosen one
        + both  # and in sequence, as it is packed
        + groups * (fitted + judging)
        + to_all,
    }  # fmt: skip


def test_a_policy_that_is_compared_with_itself_is_measured_once():
    data = batches()
    additive = make_job(Budget(average_bits=6.0), solver=SolverOptions(objective="additive"))
    validated = []
    report = additive.run(network(), data, lambda: validated.append(1) or {"runs": float(len(validated))}).report
    assert [row.name for row in report.models] == ["float", "uniform 6 bits", "additive", "chosen"]
    assert replace(report["additive"], name="chosen") == report["chosen"]
    assert len(validated) == len({row.metrics["runs"] for row in report.models[1:]}) + 1 <= 3


@pytest.mark.parametrize("loss", ["divergence", "task"])
def test_the_first_batches_are_compared_with_the_float_model_on_these_alone(loss):
    model, data = network(), batches()
    given = {"likelihood": Categorical(), "loss_fn": lambda m, b: cross_entropy(m(b[0]), b[1])}
    change, alone = (LossChange(Calibration(model, part, **given), loss) for part in (data, data[:2]))
    with torch.no_grad():
        model[2].weight.mul_(0.7)
    assert change.measure(2) == pytest.approx(alone.measure(), rel=1e-12)
    assert change.measure() != pytest.approx(alone.measure(), rel=1e-3)


def test_a_decision_changes_nothing_and_holds_the_codes_that_would_be_packed():
    model = network()
    before = state_of(model)
    decision = make_job(Budget(average_bits=6.0)).decide(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not packed_layers(model)
    policy = decision.allocation.policy
    codes = decision.quantizer.codes(policy, "independent")
    assert {layer: rows.scheme for layer, rows in codes.items()} == policy.weights()
    assert decision.taylor.predict(policy).value == pytest.approx(decision.allocation.predicted_loss)
    named = make_job(Budget(average_bits=6.0), candidates=CandidateOptions(schemes=[WeightScheme(2), WeightScheme(3)]))
    decision = named.decide(model, batches())
    assert decision.quantizer.codes(decision.allocation.policy) == {}


def test_the_grid_of_least_error_is_found_without_data_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.abs())  # all weights above zero: half of a symmetric grid is idle
    data = [(torch.randn(16, 32), torch.zeros(16, dtype=torch.long)) for _ in range(2)]
    found = make_job(Budget(average_bits=9.0), candidates=CandidateOptions(rounding="nearest", bits=(2, 4)))
    taylor = profiled(found, model, data).taylor
    assert [c.scheme.bits for c in taylor.candidates] == [2, 4] * 2
    for candidate in taylor.candidates:
        module = model.get_submodule(candidate.group)
        rows = module.weight.detach()

        def cost(grid, bits=candidate.scheme.bits, rows=rows):
            scheme = WeightScheme(bits, grid=grid, clip="mse")
            error = (quantize_rows(rows, scheme).dequantize() - rows).square().sum()
            return float(error) * 4 ** (scheme.stored_bits(*rows.shape) / rows.numel())  # 6 dB for a bit more or less

        best = WeightScheme(candidate.scheme.bits, grid=min(DEFAULT_GRIDS, key=cost), clip="mse")
        assert candidate.scheme.weight == best
    assert taylor.candidates[0].scheme.weight.grid == "asymmetric" != taylor.candidates[2].scheme.weight.grid


def test_the_program_pays_for_finer_scales_where_a_few_columns_stand_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4)).eval()
    with torch.no_grad():
        model[2].weight[:, 5:8] *= 40
        model[2].weight[:, 5:8] *= (torch.rand(128, 3) > 0.5) * 2 - 1
    data = [(torch.randn(64, 128), torch.zeros(64, dtype=torch.long)) for _ in range(4)]
    job = make_job(
        Budget(average_bits=3.4),
        candidates=CandidateOptions(bits=(3,), granularities=(32, "channel"), rounding="nearest"),
        curvature=CurvatureOptions(shrink=False),
        selection=SelectionOptions(policies=1, rounds=0),
    )
    allocation = job.decide(model, data).allocation
    shared = {group: scheme.weight.granularity for group, scheme in allocation.policy.items()}
    assert shared["2"] == 32
    assert shared["0"] == "channel"
    stored = sum(
        scheme.stored_bits(*model.get_submodule(name).weight.shape) for name, scheme in allocation.policy.items()
    )
    weights = sum(module.weight.numel() for module in model if isinstance(module, nn.Linear))
    assert allocation.costs["average_bits"] == pytest.approx(stored / weights)
    assert allocation.costs["average_bits"] <= 3.4


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


class Beside(nn.Module):
    """What no output is taken of: a teacher that is never called, and a head that is called for nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network, self.teacher, self.second_head = network(), nn.Linear(6, 64), nn.Linear(6, 40)

    def forward(self, x):
        return self.network(x), self.second_head(x)


@pytest.mark.filterwarnings("ignore:No output")
@pytest.mark.parametrize("budget", [Budget(average_bits=6.0), Budget(bytes=700.0)])
def test_what_no_output_comes_from_stays_in_float_outside_of_the_budget(budget):
    model = Beside()
    teacher, head = model.teacher.weight.clone(), model.second_head.weight.clone()
    options = SelectionOptions(policies=1, rounds=0)
    job = make_job(budget, forward_fn=lambda m, batch: m(batch[0])[0], selection=options)
    outcome = job.run(model, batches(), dict)
    assert outcome.allocation.policy.bits().keys() == {"network.0", "network.2", "network.4"}
    assert outcome.report.left_in_float.keys() == {"teacher", "second_head"}
    assert torch.equal(model.teacher.weight, teacher)
    assert torch.equal(model.second_head.weight, head)
    assert outcome.report["float"].average_bits == pytest.approx(32)
    stored = outcome.report["chosen"].stored_bytes - 4 * (teacher.numel() + head.numel())
    assert stored == outcome.allocation.costs["bytes"]


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


def test_what_a_forward_pass_takes_is_measured_where_a_bound_needs_it():
    job = make_job(Budget(device_bytes=3000, mac_average_bits=5), candidates=CandidateOptions(rounding="nearest"))
    outcome = job.run(network(), batches())
    bits, limits = outcome.allocation.policy.bits(), outcome.allocation.limits
    assert outcome.allocation.costs["mac_average_bits"] == (48 * bits["0"] + 64 * bits["2"] + 24 * bits["4"]) / 136
    assert set(limits) == {"device_bytes", "mac_average_bits"}
    assert all(outcome.allocation.costs[name] <= limit for name, limit in limits.items())
