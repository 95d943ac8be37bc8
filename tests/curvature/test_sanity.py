"""The order of widths: found where it is broken beyond chance, and kept by real networks."""

import warnings

import pytest
import torch
from helpers.jobs import make_job
from helpers.profiles import nearest_candidates, plain_profile
from torch import nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.curvature import TaylorModel
from lightning_mpq.curvature.sanity import order_violations, uncertainty, warn_of_few_that_decide
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import CurvatureOptions


def model_of(damage: list[float], errors: list[float] | None = None) -> TaylorModel:
    groups = find_groups(nn.Sequential(nn.Linear(4, 4)))
    candidates = nearest_candidates(groups, bits=[2, 3, 4])
    return TaylorModel(
        tuple(groups),
        candidates,
        torch.zeros(3),
        2 * torch.diag(torch.tensor(damage)),
        "fisher",
        "divergence",
        10,
        curvature_error=None if errors is None else 2 * torch.diag(torch.tensor(errors)),
    )


def test_a_wrong_order_is_found_with_its_size():
    (found,) = order_violations(model_of([3.0, 1.0, 1.5]))
    assert (found.fewer, found.more) == (1, 2)
    assert found.excess == pytest.approx(0.5)


def test_what_may_be_chance_is_let_pass():
    assert order_violations(model_of([3.0, 1.0, 1.5], [0.1, 0.3, 0.3])) == []
    assert len(order_violations(model_of([3.0, 1.0, 1.5], [0.1, 0.1, 0.1]))) == 1
    assert order_violations(model_of([3.0, 2.0, 1.0])) == []


def test_a_network_keeps_the_order_and_the_best_plan_without_a_budget_has_the_most_bits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 4))
    taylor = plain_profile(model, torch.randn(128, 12).split(32), estimator="gauss_newton", likelihood=Categorical())
    assert order_violations(taylor) == []
    with pytest.warns(UserWarning, match="bounds nothing"):
        allocation = allocate(taylor, Budget(average_bits=100))
    assert set(allocation.policy.bits().values()) == {8}
    assert allocation.predicted_loss <= min(
        float(taylor.curvature[i, i]) for i in range(len(taylor.candidates)) if taylor.candidates[i].scheme.bits == 2
    )


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))


def test_samples_that_hold_nearly_all_of_the_loss_are_counted():
    torch.manual_seed(1)
    inputs = torch.randn(256, 12)
    sure = inputs.clone()
    sure[3:] *= 200  # of all but three samples the network is so sure that no rounding moves its output
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for samples in (inputs, sure[:16]):  # that 16 samples are few is no news
            warn_of_few_that_decide(plain_profile(classifier(), samples.split(32), likelihood=Categorical()))
    job = make_job(4.0, curvature=CurvatureOptions(likelihood=Categorical()))
    with pytest.warns(UserWarning, match="of 192 calibration samples no more than"):
        known = job.decide(classifier(), sure.split(32))
    assert 1 / uncertainty(known.unshrunk) ** 2 < 6
