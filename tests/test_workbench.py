"""The workbench measures what packing, repairing and measuring by hand does, once, and leaves the model alone."""

import pytest
import torch
from torch import nn

from lightning_mpq.modules import packed_layers
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.options import RepairOptions
from lightning_mpq.pipeline.loss_change import LossChange
from lightning_mpq.pipeline.policy_evaluator import Workbench
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.policy import BitPolicy, WeightScheme

LAYERS = ["0", "3"]
POLICY = BitPolicy({name: WeightScheme(2, grid="half", clip="moment", rounding="second_order") for name in LAYERS})
EVERYTHING = ("biases", "BatchNorm statistics")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(1))
    return [(part, torch.zeros(16, dtype=torch.long)) for part in inputs]


def workbench(model: nn.Module) -> Workbench:
    return Workbench(model, batches(), LAYERS, options=RepairOptions(biases=True), likelihood=Categorical())


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("rounding", ["by float inputs", "in sequence"])
def test_losses_are_those_of_a_model_quantized_by_hand_and_are_measured_once(rounding):
    model, by_hand = network(), network()
    change = LossChange(by_hand, batches(), "divergence", likelihood=Categorical())
    repair = RepairOptions(sequential=rounding == "in sequence", biases=True)
    quantize(by_hand, POLICY, batches(), repair=repair)
    bench, before = workbench(model), state(model)
    assert bench.stages == [(), EVERYTHING[:1], EVERYTHING]
    (repaired,) = bench.losses(POLICY, rounding, [EVERYTHING])
    assert repaired.mean() == pytest.approx(change.measure(), rel=1e-5)
    model.register_forward_pre_hook(lambda module, args: pytest.fail("measured again"))
    assert bench.losses(POLICY, rounding, [EVERYTHING])[0] is repaired
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_is_packed_for_good_unless_something_fails():
    model, by_hand = network(), network()
    bench, before = workbench(model), state(model)

    def fail_behind_repair() -> None:
        with bench.packed(POLICY, keep=True):
            assert list(bench.repair_in_stages())[-1] == EVERYTHING
            raise RuntimeError("the user's own code fails")

    with pytest.raises(RuntimeError, match="own code fails"):
        fail_behind_repair()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    bench.pack(POLICY)
    assert set(packed_layers(model)) == set(LAYERS)
    quantize(by_hand, POLICY, batches(), repair=bench.options)
    assert all(torch.equal(value, by_hand.state_dict()[name]) for name, value in model.state_dict().items())
