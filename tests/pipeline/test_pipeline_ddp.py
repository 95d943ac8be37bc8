"""Several processes decide alike, each with its own batches, and an error of one reaches all."""

import pytest
import torch
from helpers.process_pool import RankError
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CurvatureOptions
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.tools.distributed import rank


def fails_on_one_rank(failing: int, at: int) -> str:
    """Run a job whose metrics fail on one rank at some call; return the type and text of the error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    calls = []

    def metrics() -> dict[str, float]:
        calls.append(1)
        if rank() == failing and len(calls) == at:
            raise LookupError("a metric of this rank")
        return {"accuracy": 0.5}

    settings = JobSettings(Budget(average_bits=6.0), curvature=CurvatureOptions(likelihood=Categorical()))
    try:
        Pipeline(settings).run(model, [torch.randn(8, 4) + rank()], metrics)
    except LookupError as error:
        return f"{error}"
    return "no error"


@pytest.mark.parametrize(("failing", "at"), [(0, 1), (1, 1), (1, 2)])
def test_an_error_of_one_rank_in_the_metrics_reaches_all(pool, failing, at):
    try:
        said = pool.run(fails_on_one_rank, failing, at, seconds=120)
    except RankError as error:
        pytest.fail(str(error))
    assert said == ["a metric of this rank"] * 2


def different_layers() -> str:
    """Run a job on a model that is wider on one rank; return the error."""
    model = nn.Sequential(nn.Linear(4, 8 + rank()), nn.ReLU(), nn.Linear(8 + rank(), 3))
    settings = JobSettings(Budget(average_bits=6.0), curvature=CurvatureOptions(likelihood=Categorical()))
    try:
        Pipeline(settings).decide(model, [torch.randn(8, 4)])
    except ValueError as error:
        return f"{error}"
    return "no error"


def test_ranks_with_different_layers_are_refused_before_they_wait_for_each_other(pool):
    said = pool.run(different_layers, seconds=120)
    assert said[0] == said[1]
    assert "rank 0 alone of 0 and 1 has 0.bias [8] torch.float32. Build the same model" in said[0]


def decided_on_ranks() -> tuple[object, ...]:
    """Run a job on batches of the rank's own; return all that was decided and measured."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    batches = [torch.randn(8, 4, generator=torch.Generator().manual_seed(10 * rank() + i)) + rank() for i in range(4)]
    settings = JobSettings(Budget(average_bits=6.5), curvature=CurvatureOptions(likelihood=Categorical()))
    outcome = Pipeline(settings).run(model, batches, dict)
    report = outcome.report
    assert report is not None
    weights = [value for value in model.state_dict().values() if value.is_floating_point()]
    return (
        report.held_out,
        report.samples,
        report.models,
        report.repair,
        report.trials,
        [float(value.double().sum()) for value in weights],
    )


@pytest.mark.filterwarnings("ignore")
def test_all_processes_hold_out_choose_and_repair_alike(pool):
    one, two = pool.run(decided_on_ranks, seconds=240)
    assert one == two
    held_out, samples, models, repair, trials, _ = one
    assert (held_out, samples) == (16, 64)  # one batch of each rank's four
    assert any(row.policy == "uniform" for row in trials)
    assert all(
        row.fitted_loss is not None for row in (*models, *repair, *trials) if getattr(row, "name", "") != "float"
    )
