"""Putting a policy into effect and taking it back."""

from dataclasses import replace

import pytest
import torch
from helpers.state import same, state_of
from torch import nn

from lightning_mpq.finetune import fake_quantize
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import packed_layers
from lightning_mpq.options import RepairOptions
from lightning_mpq.pipeline.quantize import quantize
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.policy import BitPolicy
from lightning_mpq.repair.batchnorm import reestimate_batchnorm
from lightning_mpq.repair.repair import Repair
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.schemes import WeightScheme

POLICY = BitPolicy({"0": WeightScheme(3, grid="half"), "3": WeightScheme(5)})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)).eval()


def batches() -> list[torch.Tensor]:
    return list(torch.randn(4, 8, 1, 6, 6, generator=torch.Generator().manual_seed(1)))


def statistics(model: nn.Sequential) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance in front of the BatchNorm layer, averaged over batches."""
    with torch.no_grad():
        outputs = [model[0](batch) for batch in batches()[:3]]  # the fourth is held out
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs])
    return means.mean(0), torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0)


def test_the_packed_model_computes_what_the_float_model_with_those_weights_and_moved_statistics_computes():
    model, twin = network(), network()
    model[1].running_mean.fill_(0.2)
    model[1].running_var.fill_(1.7)
    twin.load_state_dict(model.state_dict())
    assert quantize(model, POLICY, iter(batches())) is model
    mean, variance = statistics(twin)
    with torch.no_grad():
        for name in ("0", "3"):
            twin.get_submodule(name).weight.copy_(packed_layers(model)[name].weight)
        new_mean, new_variance = statistics(twin)
        twin[1].running_mean.copy_(0.2 + new_mean - mean)
        twin[1].running_var.copy_(1.7 * new_variance / variance)
    torch.testing.assert_close(model(batches()[0]), twin(batches()[0]))


def test_schemes_that_need_inputs_are_rounded_on_the_batches():
    policy = BitPolicy({"0": WeightScheme(3, clip="moment", rounding="second_order"), "3": WeightScheme(5)})
    model, nearest = network(), network()
    quantize(model, policy, batches())
    quantize(nearest, POLICY, batches())
    assert {name: layer.scheme for name, layer in packed_layers(model).items()} == policy.weights()
    with pytest.raises(ValueError, match="needs at least one calibration batch"):
        quantize(network(), policy, repair=RepairOptions(batchnorm=False))


def test_a_with_block_gives_everything_back():
    model = network()
    before = state_of(model)
    with temporarily_packed(model, POLICY):
        assert set(packed_layers(model)) == {"0", "3"}
        reestimate_batchnorm(model, batches())
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert same(state_of(model), before)
    with pytest.raises(RuntimeError, match="inside"), temporarily_packed(model, POLICY):
        raise RuntimeError("inside")
    assert same(state_of(model), before)


def test_batchnorm_without_batches_is_refused_before_anything_happens():
    model = network()
    before = state_of(model)
    with pytest.raises(ValueError, match=r"Pass batches=, or repair=RepairOptions\(batchnorm=False\)"):
        quantize(model, POLICY)
    assert same(state_of(model), before)
    quantize(model, POLICY, repair=RepairOptions(batchnorm=False))
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_batch_that_does_not_fit_leaves_the_model_as_it_was():
    model = network()
    before = state_of(model)
    with pytest.raises(TypeError, match="does not take the input of batch"):
        quantize(model, POLICY, [batches()[0], torch.zeros(1, 2, 6, 6)])
    assert same(state_of(model), before)
    assert not packed_layers(model)


def test_a_model_that_is_fine_tuned_is_packed_by_its_handle_alone():
    model = network()
    handle = fake_quantize(model, POLICY)
    before = state_of(model)
    with pytest.raises(ValueError, match=r"Layer '0' is fake-quantized: the pack\(\) of its handle"):
        quantize(model, POLICY, batches())
    assert same(state_of(model), before)
    handle.pack()
    assert set(packed_layers(model)) == {"0", "3"}


@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_a_packed_layer_is_not_packed_again(rounding):
    policy = BitPolicy({"3": WeightScheme(5, rounding=rounding)})
    model = quantize(network(), policy, batches())
    before = state_of(model)
    with pytest.raises(TypeError, match=r"Layer '3' is packed already .*start from the float model"):
        quantize(model, policy, batches())
    assert same(state_of(model), before)
    quantize(model, BitPolicy({"0": WeightScheme(3)}), batches())  # others may be


@pytest.mark.parametrize("given", [False, True])
def test_layers_are_rounded_in_sequence_for_the_statistics_that_are_packed(given):
    """Measured again on three batches, statistics are wrong for the fourth, of the other sign, which is held out."""
    second = WeightScheme(2, clip="moment", rounding="second_order")
    policy = BitPolicy({"0": second, "3": second})
    data = [batch + shift for batch, shift in zip(batches(), [3.0, 3.0, 3.0, -3.0], strict=True)]
    model, frozen, one_order = network(), network(), network()
    options = RepairOptions(biases=False)
    groups = find_groups(model)
    rounded = round_candidates(model, data, groups, make_candidates(groups, schemes=[second])) if given else None
    policy = policy if rounded is None else BitPolicy({c.group: c.scheme for c in rounded.candidates})
    quantize(model, policy, data, rounded=rounded, repair=options)
    assert torch.equal(model[1].running_mean, network()[1].running_mean)  # they are left
    quantize(frozen, policy, data, rounded=rounded, repair=replace(options, batchnorm=False))
    assert same(state_of(model), state_of(frozen))
    quantize(one_order, policy, data, rounded=rounded, repair=replace(options, sequential=False))
    assert not same(state_of(model), state_of(one_order))


def test_held_out_samples_are_asked_of_codes_as_candidates_are_rounded_whether_statistics_do_harm(monkeypatch):
    """Codes in sequence for statistics measured again gain by these, though codes for the float model's lose less."""
    second = WeightScheme(2, clip="moment", rounding="second_order")
    policy, data = BitPolicy({"0": second, "3": second}), batches()
    alone = quantize(network(), policy, data, repair=RepairOptions(sequential=False, biases=False))
    asked, judge = [], Repair.apply

    def refusing(self, *arguments):
        done = judge(self, *arguments)
        asked.append([layer.codes().clone() for layer in packed_layers(self._calibration.model).values()])
        return tuple(step for step in done if step != "batchnorm")

    frozen = quantize(network(), policy, data, repair=RepairOptions(biases=False, batchnorm=False))
    monkeypatch.setattr(Repair, "apply", refusing)
    model = quantize(network(), policy, data, repair=RepairOptions(biases=False))
    assert len(asked) == 2
    for codes, layer in zip(asked[0], packed_layers(alone).values(), strict=True):
        assert torch.equal(codes, layer.codes())
    assert same(state_of(model), state_of(frozen))
