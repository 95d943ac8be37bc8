"""What a job measures, and how often: passes over the data by stage."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from math import inf

import pytest
import torch
from helpers.jobs import batches, distinct_plans, make_job, network
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.options import (
    CurvatureOptions,
    SelectionOptions,
    SolverOptions,
)
from lightning_mpq.pipeline.pipeline import Outcome, Pipeline
from lightning_mpq.pipeline.policy_selection import PolicySelection
from lightning_mpq.tools.progress import StageTimer

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


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
