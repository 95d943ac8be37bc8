"""An evaluator measures what packing, repairing and measuring by hand does, once, and leaves the model alone."""

from contextlib import AbstractContextManager

import pytest
import torch
from helpers.state import state_of
from torch import nn

from lightning_mpq.modules import packed_layers
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.held_out import hold_out
from lightning_mpq.network.likelihood import Categorical
from lightning_mpq.network.loss_change import LossChange, Losses
from lightning_mpq.options import RepairOptions
from lightning_mpq.pipeline.policy_evaluator import Measured, PolicyEvaluator
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.pipeline.quantizer import Quantizer
from lightning_mpq.pipeline.temporary_packing import packed_unless_it_fails
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

LAYERS = ["0", "3"]
POLICY = BitPolicy({name: WeightScheme(2, grid="half", clip="moment", rounding="second_order") for name in LAYERS})
EVERYTHING = ("biases", "batchnorm")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).eval()


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    inputs = torch.randn(4, 16, 6, generator=torch.Generator().manual_seed(1))
    return [(part, torch.zeros(16, dtype=torch.long)) for part in inputs]


def evaluator_of(model: nn.Module) -> PolicyEvaluator:
    calibration = Calibration(model, batches(), likelihood=Categorical())
    return PolicyEvaluator(Quantizer(calibration, LAYERS, RepairOptions(biases=True)), "divergence")


def packed_for_good(quantizer: Quantizer) -> AbstractContextManager[None]:
    """Pack the policy, not yet repaired, unless the block fails."""
    return packed_unless_it_fails(quantizer.model, POLICY, quantizer.codes(POLICY), quantizer.ranges(POLICY))


def packed_by_hand(options: RepairOptions) -> nn.Sequential:
    """Return a model that is packed and repaired step by step, whatever that does to it."""
    model = network()
    quantizer = Quantizer(Calibration(model, batches(), likelihood=Categorical()), LAYERS, options)
    with packed_for_good(quantizer):
        quantizer.repair.apply()
    return model


@pytest.mark.parametrize("rounding", ["independent", "sequential"])
def test_losses_are_those_of_a_model_quantized_by_hand_and_are_measured_once(rounding):
    model = network()
    change = LossChange(Calibration(network(), batches(), likelihood=Categorical()), "divergence")
    change = change.on(packed_by_hand(RepairOptions(sequential=rounding == "sequential", biases=True)))
    evaluator, before = evaluator_of(model), state_of(model)
    assert evaluator.stages == [(), EVERYTHING[:1], EVERYTHING]
    (repaired,) = evaluator.measured(POLICY, rounding, [EVERYTHING])
    assert repaired.fitted is None  # nobody said what to hold out from rounding
    assert repaired.mean() == pytest.approx(change.measure(), rel=1e-5)
    model.register_forward_pre_hook(lambda module, args: pytest.fail("measured again"))
    assert evaluator.measured(POLICY, rounding, [EVERYTHING])[0] is repaired
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_is_packed_for_good_unless_something_fails():
    model, by_hand = network(), network()
    evaluator, before = evaluator_of(model), state_of(model)

    def fail_behind_repair() -> None:
        with packed_for_good(evaluator.quantizer):
            assert tuple(evaluator.quantizer.repair.steps()) == EVERYTHING
            raise RuntimeError("the user's own code fails")

    with pytest.raises(RuntimeError, match="own code fails"):
        fail_behind_repair()
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    evaluator.quantizer.pack(POLICY)
    assert set(packed_layers(model)) == set(LAYERS)
    quantize(by_hand, POLICY, batches(), repair=evaluator.quantizer.options)
    assert all(torch.equal(value, by_hand.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stages", [[(), EVERYTHING[:1], EVERYTHING], [EVERYTHING], [()], [EVERYTHING[:1]]])
def test_what_judges_repair_is_not_measured_twice(stages, monkeypatch):
    model = network()
    calibration, judging = hold_out(Calibration(model, batches(), likelihood=Categorical()))
    judge = LossChange(judging, "divergence")
    evaluator = PolicyEvaluator(Quantizer(calibration, LAYERS, RepairOptions(biases=True), judge=judge), "divergence")
    measured: list[Losses] = []
    measure = LossChange.measure_each

    def noted(change: LossChange, first: int | None = None) -> Losses:
        losses = measure(change, first)
        if change.calibration.batches is judging.batches:
            measured.append(losses)
        return losses

    monkeypatch.setattr(LossChange, "measure_each", noted)
    found = evaluator.measured(POLICY, "sequential", stages)
    assert len(measured) == 1 + len(stages[-1])
    for stage, each in zip(stages, found, strict=True):  # as each is measured alone, by what was repaired by hand
        with evaluator.quantizer.packed(POLICY, "sequential"):
            steps = evaluator.quantizer.repair.steps()
            for _ in stage:
                next(steps)
            assert torch.equal(each.losses.values, measure(judge).values)


def test_what_was_repaired_is_put_back_without_another_pass():
    model, by_hand = network(), packed_by_hand(RepairOptions(biases=True))
    evaluator = evaluator_of(model)
    with packed_for_good(evaluator.quantizer):
        evaluator.repair(POLICY)  # not measured yet
    assert state_of(model).keys() == state_of(by_hand).keys()
    assert all(torch.equal(value, by_hand.state_dict()[name]) for name, value in model.state_dict().items())
    model = network()
    evaluator = evaluator_of(model)
    evaluator.measured(POLICY, "sequential", [EVERYTHING])
    model.register_forward_pre_hook(lambda module, args: pytest.fail("another pass"))
    with packed_for_good(evaluator.quantizer):
        evaluator.repair(POLICY)
    assert all(torch.equal(value, by_hand.state_dict()[name]) for name, value in model.state_dict().items())
    assert all(layer.memory == "packed" for layer in packed_layers(model).values())


@pytest.mark.parametrize(("more", "order"), [(0.1, "sequential"), (1.0, "independent"), (-1.0, "sequential")])
def test_the_sequence_is_left_only_where_it_surely_loses_more(more, order, monkeypatch):
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise -= noise.mean()
    losses = {"independent": torch.zeros(100).double(), "sequential": more + noise}
    found = {name: Measured(Losses(values, torch.ones(100)), None, ()) for name, values in losses.items()}
    monkeypatch.setattr(PolicyEvaluator, "measured", lambda self, policy, rounding, stages: [found[rounding]])
    evaluator = evaluator_of(network())
    assert evaluator.quantizer.order(POLICY) == "sequential"
    evaluator.settle(POLICY)
    assert evaluator.quantizer.order(POLICY) == order
