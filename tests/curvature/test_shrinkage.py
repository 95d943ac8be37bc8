"""Shrinkage of noisy entries: rules, limits, and that they bring the model closer to the truth on average."""

import warnings
from dataclasses import replace

import pytest
import torch
from helpers.profiles import nearest_candidates, plain_profile
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lightning_mpq.curvature import TaylorModel, shrink
from lightning_mpq.curvature.shrinkage import between_groups, shrinkage_intensity
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.likelihood import Categorical


def by_hand(gradient=(0.0, 0.0), gradient_error=None, between=0.5, error=None):
    groups = find_groups(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    curvature = torch.tensor([[4.0, 2 * between], [2 * between, 1.0]])
    return TaylorModel(
        tuple(groups),
        nearest_candidates(groups, [2]),
        torch.tensor(gradient),
        curvature,
        "hand",
        "task",
        1,
        gradient_error=None if gradient_error is None else torch.tensor(gradient_error),
        curvature_error=None if error is None else torch.full((2, 2), error),
    )


def test_gradient_entries_keep_what_exceeds_their_noise():
    taylor = by_hand((3.0, -0.5), (1.0, 1.0))
    assert_close(shrink(taylor).gradient, torch.tensor([3.0 * (1 - 1 / 9), 0.0]).double())
    exact = by_hand((3.0, 0.0), (0.0, 0.0))
    assert torch.equal(shrink(exact).gradient, exact.gradient)
    assert torch.equal(shrink(taylor, gradient=False).gradient, taylor.gradient)
    assert torch.equal(shrink(taylor).gradient_error, taylor.gradient_error)


def test_between_groups_the_intensity_is_noise_over_signal():
    taylor = by_hand(between=0.5, error=0.4)  # correlation 0.5 with error 0.4 / sqrt(4 * 1) = 0.2
    assert shrinkage_intensity(taylor) == pytest.approx(0.2**2 / 0.5**2)
    shrunk = shrink(taylor)
    assert_close(shrunk.curvature, torch.tensor([[4.0, 0.84], [0.84, 1.0]]).double())
    assert torch.equal(shrink(taylor, between=False).curvature, taylor.curvature)
    assert_close(shrink(by_hand(error=0.0)).curvature, by_hand().curvature)
    assert_close(shrink(by_hand(error=9.0)).curvature, torch.diag(torch.tensor([4.0, 1.0])).double())
    assert shrink(by_hand()).curvature.equal(by_hand().curvature)  # nothing is known about the noise
    with pytest.raises(ValueError, match="has none"):
        shrinkage_intensity(by_hand())


def test_shrinking_brings_a_noisy_estimate_closer_to_the_truth_and_keeps_it_semidefinite():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    options = {"bits": [2, 3, 4], "likelihood": Categorical()}
    truth = plain_profile(net, [torch.randn(4000, 6)], estimator="gauss_newton", **options).curvature
    squared = []
    for seed in range(20):
        raw = plain_profile(
            net, [torch.randn(24, 6, generator=torch.Generator().manual_seed(seed))], seed=seed, **options
        )
        shrunk = shrink(raw)
        pairs = between_groups(raw)
        scale = torch.outer(truth.diagonal().sqrt(), truth.diagonal().sqrt())
        errors = [(((m.curvature - truth) / scale)[pairs]).square().sum() for m in (raw, shrunk)]
        squared.append(torch.stack(errors))
        assert torch.linalg.eigvalsh(shrunk.curvature)[0] > -1e-12 * raw.curvature.trace()
        assert torch.equal(shrunk.curvature.diagonal(), raw.curvature.diagonal())
    raw_error, shrunk_error = torch.stack(squared).mean(0)
    assert shrunk_error < 0.8 * raw_error


def test_a_network_far_from_a_minimum_is_named_and_a_trained_one_is_not():
    torch.manual_seed(0)
    inputs = torch.randn(256, 4)
    labels = (inputs @ torch.randn(4, 3)).argmax(1)
    flipped = torch.where(torch.rand(256) < 0.3, torch.randint(0, 3, (256,)), labels)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    data = list(zip(inputs.split(16), flipped.split(16), strict=True))

    def measure():
        return plain_profile(
            net, data, estimator="hessian", loss_fn=lambda m, b: cross_entropy(m(b[0]), b[1]), bits=[4, 8]
        )

    with torch.no_grad():
        net[2].weight *= 8  # sure of what is wrong
    with pytest.warns(UserWarning, match=r"not near a minimum .* 2 of 2 groups .* \+- .* against"):
        measure()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(net(inputs), flipped)
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        taylor = measure()
    z = taylor.gradient / taylor.gradient_error
    assert z.abs().median() < 1.5
    assert replace(taylor, gradient_error=None).gradient_error is None
