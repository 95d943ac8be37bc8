import copy

import pytest
import torch
from torch import nn

from lightning_mpq.allocation import Budget, allocate
from lightning_mpq.curvature.taylor_model import TaylorModel
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import PackedLinear
from lightning_mpq.modules.latency import measure_latency
from lightning_mpq.schemes import WeightScheme


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.small = nn.Linear(8, 8)
        self.large = nn.Linear(8, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x, twice=True):
        x = self.small(self.small(x)) if twice else self.small(x)
        return self.large(x)


@pytest.fixture
def counted_time(monkeypatch):
    """A clock that advances by one second for every call of a packed layer."""
    seconds = [0.0]
    plain_forward = PackedLinear.forward

    def forward(self, *args):
        seconds[0] += 1
        return plain_forward(self, *args)

    monkeypatch.setattr(PackedLinear, "forward", forward)
    monkeypatch.setattr("lightning_mpq.modules.latency.time.perf_counter", lambda: seconds[0])


@pytest.mark.usefixtures("counted_time")
def test_packed_layers_are_timed_on_their_own_inputs():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    groups = find_groups(model, keep_float=["unused"])
    schemes = [WeightScheme(2, grid="half"), WeightScheme(8)]
    table = measure_latency(model, schemes, inputs=(torch.randn(4, 8),), groups=groups)
    assert set(table.entries) == {(g.name, str(s)) for g in groups for s in schemes}
    for scheme in schemes:  # one layer is called twice in a pass
        assert table.entries["small", str(scheme)] == 2000
        assert table.entries["large", str(scheme)] == 1000
    assert model.training
    assert not model.small._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    candidates = make_candidates(groups, schemes=schemes)
    zeros = torch.zeros(len(candidates))
    taylor = TaylorModel(groups.groups, candidates, zeros, torch.diag(zeros + 1), "fisher", "divergence", 1)
    plan = allocate(taylor, Budget(latency=1e6, latency_table=table))
    assert plan.costs["latency"] == pytest.approx(sum(table.entries[g, str(s)] for g, s in plan.policy.items()))


def test_layers_that_are_not_reached_are_named():
    with pytest.raises(ValueError, match="does not use unused"):
        measure_latency(Net(), [WeightScheme(4)], inputs=(torch.randn(4, 8),))


def test_something_must_be_measured():
    with pytest.raises(ValueError, match="at least one scheme"):
        measure_latency(Net(), [], inputs=(torch.randn(4, 8),))


def test_projections_of_attention_are_timed_and_recurrent_weights_are_named():
    model = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).eval()
    scheme = WeightScheme(4)
    table = measure_latency(model, [scheme], inputs=(torch.randn(2, 3, 8),), repeats=1)
    assert {group for group, _ in table.entries} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    }
    assert min(table.entries.values()) > 0
    with pytest.raises(ValueError, match="0.weight_hh_l0, 0.weight_ih_l0 are not used by a call of their own"):
        measure_latency(nn.Sequential(nn.GRU(3, 2)), [scheme], inputs=(torch.randn(2, 3, 3),))
