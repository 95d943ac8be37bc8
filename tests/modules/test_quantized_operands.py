"""Sums and averages of quantized tensors: what an explicit model computes; saved, copied, compiled and taken back."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_mpq import RepairOptions, clipped_inputs, load, quantize, save
from lightning_mpq.demo.resnet import BasicBlock
from lightning_mpq.finetune import fake_quantize
from lightning_mpq.finetune.resume import resume_fake_quantization
from lightning_mpq.inputs.quantizer import InputRange, quantize_inputs, range_between
from lightning_mpq.modules import pack_model, policy_of, restore_layers
from lightning_mpq.modules.quantized_operands import operand_ranges
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

EIGHT = InputScheme(8)
LAYERS = LayerScheme(WeightScheme(8), EIGHT)
FOUND = range_between(-2, 2, EIGHT)


def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 1), BasicBlock(2, 2)).eval()


def policy(operands: dict[str, InputScheme] | None = None) -> BitPolicy:
    return BitPolicy(dict.fromkeys(("0", "1.conv1", "1.conv2"), LAYERS), operands=operands)


def ranges() -> dict[str, InputRange]:
    own = {"1.add0:0": range_between(-1, 3, EIGHT), "1.add0:1": range_between(-0.5, 0.5, EIGHT)}
    return dict.fromkeys(("0", "1.conv1", "1.conv2"), FOUND) | own


def packed() -> nn.Sequential:
    model = block()
    pack_model(model, policy({"1.add0": EIGHT}), ranges=ranges())
    return model


def images() -> torch.Tensor:
    return torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_computes_what_an_explicit_model_does():
    model, found = packed(), ranges()
    own = model[1]
    x = model[0](images())
    left = own.bn2(own.conv2(own.bn1(own.conv1(x)).relu()))
    left, right = (quantize_inputs(value, EIGHT, *found[f"1.add0:{i}"].tensors()) for i, value in enumerate((left, x)))
    assert torch.equal(model(images()), (left + right).relu())
    assert policy_of(model).operands == {"1.add0": EIGHT}
    assert BitPolicy.from_json(policy_of(model).to_json()) == policy_of(model)
    before = model(images())
    assert torch.equal(model.half().float()(images()), before)


def test_saved_copied_pickled_compiled_and_exported_it_computes_the_same(tmp_path):
    model = packed()
    expected = model(images())
    save(model, tmp_path)
    for other in (load(tmp_path, block()), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images()), expected)
    torch.testing.assert_close(torch.compile(model, backend="eager")(images()), expected)
    torch.testing.assert_close(torch.export.export(model, (images(),)).module()(images()), expected)


def test_taken_back_nothing_is_left():
    model = block()
    before, state = model(images()), set(model.state_dict())
    floats = pack_model(model, policy({"1.add0": EIGHT}), ranges=ranges())
    assert set(model.state_dict()) >= {"1.operand_scale", "1.operand_zero_point"}
    restore_layers(model, floats)
    assert torch.equal(model(images()), before)
    assert set(model.state_dict()) == state
    assert type(model[1]) is BasicBlock


def test_by_default_sums_of_quantized_convolutions_are_quantized():
    repair = RepairOptions(batchnorm=False, biases=False)
    assert policy_of(quantize(block(), policy(), [images()], repair=repair)).operands == {"1.add0": EIGHT}
    assert policy_of(quantize(block(), policy({}), [images()], repair=repair)).operands is None


def test_what_does_not_fit_is_refused_and_changes_nothing():
    model = block()
    before = model(images())
    for operands, said in (({"2.add0": EIGHT}, "has no such module"), ({"0.add0": EIGHT}, "range of what '0.add0'")):
        with pytest.raises(ValueError, match=said):
            pack_model(model, policy(operands), ranges=ranges())
        assert torch.equal(model(images()), before)
    with pytest.raises(ValueError, match="needs an InputScheme per tensor"):
        policy({"1.add0": InputScheme(8, "token")})


def test_fine_tuning_rounds_them_by_ranges_that_learn_and_packs_what_it_computed():
    model = block()
    before, state = model(images()).detach(), set(model.state_dict())
    handle = fake_quantize(model, policy({"1.add0": EIGHT}), ranges=ranges())
    assert set(model.state_dict()) == state
    with handle.float_weights():
        torch.testing.assert_close(model(images()), before, atol=0.2, rtol=0)
        assert type(model[1]) is BasicBlock
    optimizer = torch.optim.SGD(handle.parameters(), 0.1)
    model(images()).square().sum().backward()
    first = next(model.parameters()).grad
    assert first is not None
    assert float(first.abs().max()) > 0
    optimizer.step()
    learned = handle.ranges
    assert [name for name, _ in handle.named_parameters()][3:] == ["0.input", "1.add0:0.input", "1.add0:1.input"]
    assert all(learned[name] != found for name, found in ranges().items())
    twin = block()
    twin.load_state_dict(model.state_dict())
    assert torch.equal(resume_fake_quantization(twin, handle.state_dict()).model(images()), model(images()))
    expected = model(images()).detach()
    handle.pack()
    torch.testing.assert_close(model(images()), expected)
    assert policy_of(model).operands == {"1.add0": EIGHT}
    assert {name: found for name, (_, found) in operand_ranges(model).items()} == {
        name: learned[name] for name in ("1.add0:0", "1.add0:1")
    }


def test_what_is_clipped_of_them_is_told():
    model = packed()
    found = clipped_inputs(model, [images()])
    assert set(found) == {"0", "1.conv1", "1.conv2", "1.add0:0", "1.add0:1"}
    scheme, own = operand_ranges(model)["1.add0:1"]
    read = model[0](images()).detach()
    low, high = (-own.zero_point - 0.5) * own.scale, (2**scheme.bits - 0.5 - own.zero_point) * own.scale
    assert found["1.add0:1"] == pytest.approx(float(((read < low) | (read > high)).double().mean()))
    assert found["1.add0:1"] > 0
