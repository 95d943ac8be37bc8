"""The policies that a chosen one is compared with."""

import pytest
import torch
from helpers.profiles import nearest_candidates
from torch import nn

from lightning_mpq.curvature import TaylorModel
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.pipeline.comparison import uniform_policy

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def taylor_of(bits_per_group: dict[str, list[int]]) -> TaylorModel:
    groups = find_groups(network())
    candidates = tuple(
        candidate
        for candidate in nearest_candidates(groups)
        if candidate.scheme.bits in bits_per_group[candidate.group]
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
