"""What a job offers and decides: grids, scales, what is left out of the budget, and codes that wait to be packed."""

import pytest
import torch
from helpers.jobs import batches, make_job, network, profiled
from helpers.state import state_of
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.modules import packed_layers
from lightning_mpq.options import (
    CandidateOptions,
    CurvatureOptions,
    SelectionOptions,
)
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

pytestmark = pytest.mark.filterwarnings("ignore:likelihood=")


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


def test_what_a_forward_pass_takes_is_measured_where_a_bound_needs_it():
    job = make_job(Budget(device_bytes=3000, mac_average_bits=5), candidates=CandidateOptions(rounding="nearest"))
    outcome = job.run(network(), batches())
    bits, limits = outcome.allocation.policy.bits(), outcome.allocation.limits
    assert outcome.allocation.costs["mac_average_bits"] == (48 * bits["0"] + 64 * bits["2"] + 24 * bits["4"]) / 136
    assert set(limits) == {"device_bytes", "mac_average_bits"}
    assert all(outcome.allocation.costs[name] <= limit for name, limit in limits.items())
