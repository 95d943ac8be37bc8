"""The whole job without a Trainer: the comparison plan, the sums of the report, and what it refuses."""

import json
from collections import Counter
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from lightning_mpq.allocation import Budget
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import packed_layers
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    LoopOptions,
    RepairOptions,
    SolverOptions,
)
from lightning_mpq.pipeline.comparison import compared_policies, uniform_policy
from lightning_mpq.pipeline.loss_change import LossChange
from lightning_mpq.pipeline.pipeline import Outcome, Pipeline
from lightning_mpq.policy import GRIDS, WeightScheme
from lightning_mpq.quantizers import quantize_rows

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


def taylor_of(bits_per_group: dict[str, list[int]]) -> TaylorModel:
    groups = find_groups(network())
    candidates = tuple(
        candidate for candidate in make_candidates(groups) if candidate.scheme.bits in bits_per_group[candidate.group]
    )
    count = len(candidates)
    return TaylorModel(
        tuple(groups), candidates, torch.zeros(count), torch.eye(count), "fisher", "divergence", samples=1
    )


@pytest.mark.parametrize(("average", "width"), [(2.0, 2), (2.49, 2), (2.5, 3), (3.02, 3), (7.9, 8), (9.0, 8)])
def test_the_uniform_plan_has_the_nearest_whole_width(average, width):
    everything = list(range(2, 9))
    policy = uniform_policy(taylor_of({"0": everything, "2": everything, "4": everything}), average)
    assert set(policy.bits().values()) == {width}


def test_a_group_without_that_width_gets_the_nearest_of_its_own():
    policy = uniform_policy(taylor_of({"0": [2, 8], "2": [3, 4, 5], "4": [2, 4]}), 3.0)
    assert policy.bits() == {"0": 2, "2": 3, "4": 4}


def test_divergence_and_task_loss_are_measured_as_defined():
    model, data = network(), batches()
    divergence = LossChange(model, data, "divergence", likelihood=Categorical())
    task = LossChange(model, data, "task", loss_fn=lambda m, b: cross_entropy(m(b[0]), b[1]))
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


@pytest.mark.parametrize("verdict", [True, False])
def test_the_job_runs_without_a_trainer_and_tells_how_far_it_is(verdict):
    model, told, validated = network(), [], []

    def evaluate() -> dict[str, float]:
        validated.append(len(packed_layers(model)))
        return {"packed": float(validated[-1])}

    pipeline = Pipeline(Budget(average_bits=6.0), progress=lambda fraction, message: told.append(fraction))
    outcome = pipeline.run(model, batches(), evaluate if verdict else None)
    assert len(packed_layers(model)) == 3
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert validated == ([0] + [3] * distinct_plans(outcome) if verdict else [])
    if verdict:
        report = outcome.report
        json.dumps(report.to_dict(), allow_nan=False)
        assert sum(g.predicted_share for g in report.groups) == pytest.approx(outcome.allocation.predicted_loss)
        assert sum(g.weights for g in report.groups) == 48 + 64 + 24
        assert report.samples == 51
        rows = {(row.rounding, row.repaired): row.measured_loss for row in report.repair}
        assert list(rows) == [(r, done) for r in ("by float inputs", "in sequence") for done in ((), ("biases",))]
        assert report["chosen"].measured_frozen == rows["by float inputs", ()]
        assert report["chosen"].measured_loss == rows["in sequence", ("biases",)]
        assert min(rows.values()) > 0


def passes_by_stage(job: Pipeline, model: nn.Module, data: list, evaluate) -> tuple[dict[str, float], Outcome]:
    """Return stage to forward passes over all data, those of copies of the model included."""
    passes: Counter[str] = Counter()
    stage = ["other"]

    class Counted(Pipeline):
        @contextmanager
        def _stage(self, name: str):
            stage.append(name)
            with super()._stage(name):
                yield
            stage.pop()

    samples = sum(len(inputs) for inputs, _ in data)
    model.register_forward_pre_hook(lambda module, args: passes.update({stage[-1]: len(args[0]) / samples}))
    outcome = Counted(**{f.name: getattr(job, f.name) for f in fields(job) if f.init}).run(model, data, evaluate)
    return dict(passes), outcome


def test_a_job_measures_the_float_model_once_and_no_plan_twice():
    torch.manual_seed(0)
    layers = [part for _ in range(3) for part in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh())]
    model, groups = nn.Sequential(*layers, nn.Linear(8, 3)).eval(), 4
    data = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(4)]
    outputs, statistics, measured, repaired = 1, 1, 1, 1
    in_sequence = 2 + 1 / 4  # the float model and its rounded copy, and the order of their layers on the first batch
    job = Pipeline(Budget(average_bits=5.5), loop=LoopOptions(rounds=0))
    found, outcome = passes_by_stage(job, model, data, dict)
    others, trials = distinct_plans(outcome) - 1, len({str(row.bits) for row in outcome.report.trials})
    assert found == {
        "round": 1,
        "profile": pytest.approx(1 + 1 / 4),  # a guess on the first batch what outputs mean
        "trials": outputs + statistics + trials * (repaired + measured),
        "quantize": in_sequence,
        "verdict": others * (measured + in_sequence + repaired + measured)
        + measured  # the chosen plan as rounded; repaired it is one of the trials
        + measured + repaired + measured  # and in sequence, as it is packed
        + groups * (repaired + measured),
    }  # fmt: skip


def test_a_plan_that_is_compared_with_itself_is_measured_once():
    data = batches()
    additive = Pipeline(Budget(average_bits=6.0), solver=SolverOptions(objective="additive"))
    validated = []
    report = additive.run(network(), data, lambda: validated.append(1) or {"runs": float(len(validated))}).report
    assert [row.name for row in report.models] == ["float", "uniform 6 bits", "additive plan", "chosen plan"]
    assert replace(report["additive"], name="chosen plan") == report["chosen"]
    assert len(validated) == len({row.metrics["runs"] for row in report.models[1:]}) + 1 <= 3


@pytest.mark.parametrize("loss", ["divergence", "task"])
def test_the_first_batches_are_compared_with_the_float_model_on_these_alone(loss):
    model, data = network(), batches()
    given = {"likelihood": Categorical(), "loss_fn": lambda m, b: cross_entropy(m(b[0]), b[1])}
    change, alone = (LossChange(model, part, loss, **given) for part in (data, data[:2]))
    with torch.no_grad():
        model[2].weight.mul_(0.7)
    assert change.measure(2) == pytest.approx(alone.measure(), rel=1e-12)
    assert change.measure() != pytest.approx(alone.measure(), rel=1e-3)


def test_a_plan_changes_nothing_and_holds_the_codes_that_would_be_packed():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = Pipeline(Budget(average_bits=6.0)).plan(model, batches())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not packed_layers(model)
    schemes = plan.allocation.policy.by_layer()
    codes = plan.bench.codes(plan.allocation.policy, "by float inputs")
    assert {layer: rows.scheme for layer, rows in codes.items()} == schemes
    assert plan.taylor.predict(plan.allocation.policy).value == pytest.approx(plan.allocation.predicted_loss)
    named = Pipeline(Budget(average_bits=6.0), candidates=CandidateOptions(schemes=[WeightScheme(2), WeightScheme(3)]))
    plan = named.plan(model, batches())
    assert plan.bench.codes(plan.allocation.policy) == {}


def test_the_grid_of_least_error_is_found_without_data_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.abs())  # all weights above zero: half of a symmetric grid is idle
    data = [(torch.randn(16, 32), torch.zeros(16, dtype=torch.long)) for _ in range(2)]
    found = Pipeline(Budget(average_bits=9.0), candidates=CandidateOptions(rounding="nearest", bits=(2, 4)))
    taylor = found.measure(model, data)[2]
    assert [c.scheme.bits for c in taylor.candidates] == [2, 4] * 2
    for candidate in taylor.candidates:
        module = model.get_submodule(candidate.group)
        rows = module.weight.detach()

        def cost(grid, bits=candidate.scheme.bits, rows=rows):
            scheme = WeightScheme(bits, grid=grid)
            error = (quantize_rows(rows, scheme).dequantize() - rows).square().sum()
            return float(error) * 4 ** (scheme.stored_bits(*rows.shape) / rows.numel())  # 6 dB for a bit more or less

        assert candidate.scheme == WeightScheme(candidate.scheme.bits, grid=min(GRIDS, key=cost))
    assert taylor.candidates[0].scheme.grid == "asymmetric" != taylor.candidates[2].scheme.grid


def test_the_program_pays_for_finer_scales_where_a_few_columns_stand_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 4)).eval()
    with torch.no_grad():
        model[2].weight[:, 5:8] *= 40
        model[2].weight[:, 5:8] *= (torch.rand(128, 3) > 0.5) * 2 - 1
    data = [(torch.randn(64, 128), torch.zeros(64, dtype=torch.long)) for _ in range(4)]
    job = Pipeline(
        Budget(average_bits=3.4),
        candidates=CandidateOptions(bits=(3,), granularities=(32, "channel"), rounding="nearest"),
        curvature=CurvatureOptions(shrink=False),
        loop=LoopOptions(plans=1, rounds=0),
    )
    allocation = job.plan(model, data).allocation
    shared = {group: scheme.granularity for group, scheme in allocation.policy.items()}
    assert shared["2"] == 32
    assert shared["0"] == "channel"
    stored = sum(
        scheme.stored_bits(*model.get_submodule(name).weight.shape) for name, scheme in allocation.policy.items()
    )
    weights = sum(module.weight.numel() for module in model if isinstance(module, nn.Linear))
    assert allocation.costs["average_bits"] == pytest.approx(stored / weights)
    assert allocation.costs["average_bits"] <= 3.4


def test_a_plan_is_judged_as_it_is_when_packed_and_nothing_is_packed():
    judged, packed = network(), network()
    pipeline = Pipeline(Budget(average_bits=6.0))
    before = {name: value.clone() for name, value in judged.state_dict().items()}
    report = pipeline.judge(pipeline.plan(judged, batches()), dict)
    assert all(torch.equal(value, before[name]) for name, value in judged.state_dict().items())
    assert not packed_layers(judged)
    expected = pipeline.run(packed, batches(), dict).report
    assert report.models == expected.models
    assert report.groups == expected.groups


def test_exact_hessian_and_fisher_agree_on_what_is_a_small_step():
    loss = {"loss_fn": lambda m, b: cross_entropy(m(b[0]), b[1]), "candidates": CandidateOptions(bits=(8,))}
    budget = Budget(average_bits=12)
    model = network()
    change = LossChange(model, batches(), "task", loss_fn=loss["loss_fn"])
    outcome = Pipeline(
        budget, curvature=CurvatureOptions(estimator="hessian", shrink=False), repair=NOTHING, **loss
    ).run(model, batches())
    assert change.measure() == pytest.approx(outcome.allocation.predicted_loss, rel=0.05, abs=1e-6)


def test_no_data_and_quantized_models_are_refused():
    model = network()
    with pytest.raises(ValueError, match="at least one batch of training data, got none"):
        Pipeline(Budget(average_bits=8)).run(model, [])
    Pipeline(Budget(average_bits=8)).run(model, batches())
    with pytest.raises(ValueError, match="quantized already.*'0'"):
        Pipeline(Budget(average_bits=8)).run(model, batches())
