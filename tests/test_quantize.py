"""Putting a policy into effect and taking it back."""

import pytest
import torch
from torch import nn

from lightning_mpq.modules import packed_layers
from lightning_mpq.policy import BitPolicy, WeightScheme
from lightning_mpq.quantize import quantize, temporarily_quantized

POLICY = BitPolicy({"0": WeightScheme(3, grid="half"), "3": WeightScheme(5)})


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)).eval()


def batches() -> list[torch.Tensor]:
    return list(torch.randn(4, 8, 1, 6, 6, generator=torch.Generator().manual_seed(1)))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_packed_model_computes_what_the_float_model_with_those_weights_and_statistics_computes():
    model, twin = network(), network()
    assert quantize(model, POLICY, batches()) is model
    with torch.no_grad():
        for name in ("0", "3"):
            twin.get_submodule(name).weight.copy_(packed_layers(model)[name].weight)
        outputs = torch.stack([twin[0](batch) for batch in batches()])
        twin[1].running_mean.copy_(outputs.mean((0, 1, 3, 4)))
        twin[1].running_var.copy_(torch.stack([o.var((0, 2, 3), unbiased=True) for o in outputs]).mean(0))
    torch.testing.assert_close(model(batches()[0]), twin(batches()[0]))


def test_a_with_block_gives_everything_back():
    model = network()
    before = state(model)
    with temporarily_quantized(model, POLICY, batches()):
        assert set(packed_layers(model)) == {"0", "3"}
        assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    assert same(state(model), before)
    with pytest.raises(RuntimeError, match="inside"), temporarily_quantized(model, POLICY, batches()):
        raise RuntimeError("inside")
    assert same(state(model), before)


def test_batchnorm_without_batches_is_refused_before_anything_happens():
    model = network()
    before = state(model)
    with pytest.raises(ValueError, match="Pass batches=, or reestimate=False"):
        quantize(model, POLICY)
    assert same(state(model), before)
    quantize(model, POLICY, reestimate=False)
    assert torch.equal(model[1].running_mean, before["1.running_mean"])


def test_a_batch_that_does_not_fit_leaves_the_model_as_it_was():
    model = network()
    before = state(model)
    with pytest.raises(TypeError, match="batch 2"):
        quantize(model, POLICY, [batches()[0], torch.zeros(1, 2, 6, 6)])
    assert same(state(model), before)
    assert not packed_layers(model)
