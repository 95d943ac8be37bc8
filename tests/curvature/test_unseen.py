"""What a Taylor model tells of unseen samples: its terms scaled by how far each layer's rounding fits the samples."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lightning_mpq import Categorical, find_groups, make_candidates, profile, round_candidates
from lightning_mpq.curvature.resampling import resampled
from lightning_mpq.curvature.unseen import for_unseen


@pytest.fixture(scope="module")
def measured():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    batches = list(torch.randn(6, 4, 12) @ torch.diag(torch.logspace(0, -2, 12)))
    groups = find_groups(net)
    offered = make_candidates(groups, [2, 4]) + make_candidates(groups, [3], rounding="nearest")
    offered = sorted(offered, key=lambda candidate: candidate.group)
    rounded = round_candidates(net, batches, groups, offered)
    taylor = profile(net, batches, groups=groups, rounded=rounded, likelihood=Categorical(), shrink=False)
    return taylor, rounded, net, batches


def test_terms_are_scaled_by_the_roots_of_both_layers_factors(measured):
    taylor, rounded, *_ = measured
    rounded = replace(rounded, unseen={"0": 4.0, "2": 9.0})
    raised = for_unseen(taylor, rounded)
    for i, one in enumerate(taylor.candidates):
        for j, two in enumerate(taylor.candidates):
            expected = float(taylor.curvature[i, j])
            for candidate in (one, two):
                if candidate.scheme.weight.rounding == "second_order":
                    expected *= {"0": 2.0, "2": 3.0}[candidate.group]
            assert float(raised.curvature[i, j]) == pytest.approx(expected)
    torch.testing.assert_close(
        raised.curvature_error / taylor.curvature_error, raised.curvature / taylor.curvature, equal_nan=True
    )


def test_few_samples_raise_the_prediction_and_its_error_alike(measured):
    taylor, rounded, *_ = measured
    assert all(factor > 1.05 for factor in rounded.unseen.values()), rounded.unseen
    raised = for_unseen(taylor, rounded)
    policy = taylor.policy([0, 3])
    before, after = taylor.predict(policy), raised.predict(policy)
    assert after.value > 1.05 * before.value
    assert after.standard_error / after.value == pytest.approx(before.standard_error / before.value, rel=0.3)
    drawn = torch.stack([torch.from_numpy(matrix) for _, matrix in resampled(raised, 200, 0)]).mean(0)
    torch.testing.assert_close(drawn.diagonal(), raised.curvature.diagonal(), rtol=0.2, atol=0)


def test_profile_takes_it_into_account_and_shrink_false_measures_as_it_is(measured):
    taylor, rounded, net, batches = measured
    groups = taylor.groups
    found = profile(net, batches, groups=groups, rounded=rounded, likelihood=Categorical())
    torch.testing.assert_close(found.curvature.diagonal(), for_unseen(taylor, rounded).curvature.diagonal())


def test_weights_that_were_rounded_by_themselves_stay_as_they_are(measured):
    taylor, rounded, *_ = measured
    assert for_unseen(taylor, None) is taylor
    torch.testing.assert_close(for_unseen(taylor, replace(rounded, unseen={})).curvature, taylor.curvature)
