"""A whole job on a network with BatchNorm: batches of any size, and whether its statistics are measured again."""

import pytest
import torch
from helpers.jobs import make_job
from torch import nn

from lightning_mpq.modules import packed_layers
from lightning_mpq.options import (
    CurvatureOptions,
    RepairOptions,
    SelectionOptions,
)

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


@pytest.mark.filterwarnings("ignore:A batch, or a chunk")
@pytest.mark.parametrize("sizes", [(33, 65), (32, 1), (0, 33, 0)])
def test_batches_of_any_size_do_with_batchnorm(sizes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    data = [(torch.randn(size, 6), torch.randint(3, (size,))) for size in sizes]
    outcome = make_job(6.0).run(model, data, dict)
    assert outcome.report.samples == outcome.taylor.samples + outcome.report.held_out == sum(sizes)
    assert outcome.report.held_out > 0
    assert len(packed_layers(model)) == 2


@pytest.mark.filterwarnings("ignore:Measuring BatchNorm statistics again raises", "ignore:Rounded layer after layer")
def test_where_statistics_are_measured_in_vain_all_is_done_for_those_of_the_float_model(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    data = [(torch.randn(8, 1, 8, 8), torch.randint(3, (8,))) for _ in range(6)]

    def decide(**repair):
        return make_job(3.0, repair=RepairOptions(**repair), selection=SelectionOptions(1, 0)).decide(net, data)

    frozen = decide(batchnorm=False)
    spoilt = 0

    def spoil(model, calibration, statistics):
        nonlocal spoilt
        spoilt += 1
        model[1].running_mean += 10.0

    monkeypatch.setattr("lightning_mpq.repair.repair.reestimate_batchnorm", spoil)
    said = []
    monkeypatch.setattr("lightning_mpq.pipeline.planning.warn_of_few_that_decide", said.append)
    found = decide()
    assert spoilt == 1
    assert said == [found.unshrunk]  # of the profile that counts, once
    assert not found.reestimated
    assert torch.equal(found.taylor.curvature, frozen.taylor.curvature)
    assert found.allocation.policy == frozen.allocation.policy
    assert found.quantizer.repair.names == ()
    assert not net[1].running_mean.any()
    monkeypatch.setattr("lightning_mpq.repair.repair.reestimate_batchnorm", lambda *arguments: None)
    kept = make_job(3.0, curvature=CurvatureOptions(statistics="reestimated"), selection=SelectionOptions(1, 0))
    assert kept.decide(net, data).reestimated  # who asks for it gets it


def test_whether_statistics_are_measured_in_vain_is_seen_from_the_trial_of_the_solved_policy(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    data = [(torch.randn(8, 1, 8, 8), torch.randint(3, (8,))) for _ in range(6)]
    measured = []
    monkeypatch.setattr("lightning_mpq.repair.repair.reestimate_batchnorm", lambda *given: measured.append(given))
    job = make_job(3.0, repair=RepairOptions(sequential=False), selection=SelectionOptions(2, 0))
    found = job.decide(net, data)
    assert found.reestimated
    assert len(measured) == len(found.trials) > 0
