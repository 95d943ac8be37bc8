"""Fine-tuning with quantized inputs: what is trained is what is packed, gradients are those of LSQ, ranges learn."""

import copy

import pytest
import torch
from helpers.networks import mlp, vectors
from torch import nn
from torch.nn.functional import mse_loss

from lightning_mpq import fake_quantize
from lightning_mpq.errors import NonFiniteError
from lightning_mpq.finetune.inputs import InputQuantizer
from lightning_mpq.finetune.resume import pack_finetuned, resume_fake_quantization
from lightning_mpq.inputs.quantizer import InputRange, range_between
from lightning_mpq.modules import packed_layers, policy_of
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

SCHEMES = {"0": InputScheme(6), "2": InputScheme(5, "token")}
POLICY = BitPolicy({name: LayerScheme(WeightScheme(4), scheme) for name, scheme in SCHEMES.items()})
RANGES = {"0": range_between(-2, 2, SCHEMES["0"])}


def test_what_is_trained_is_what_is_packed():
    model, (x,) = mlp(6, 8, 3), vectors(16)
    plain, before = copy.deepcopy(model), model(x)
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    with handle.float_weights():
        assert torch.allclose(model(x), before, atol=0.5)
        assert not model[0]._forward_pre_hooks
    optimizer = torch.optim.SGD([*model.parameters(), *handle.parameters()], 0.1)
    target = plain(x).detach() + 0.3  # which biases alone can follow
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = mse_loss(model(x), target)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert not torch.equal(model[0]._parameters["weight"], plain[0].weight)
    expected, ranges = model(x), handle.ranges
    handle.pack()
    assert policy_of(model) == POLICY
    assert float(packed_layers(model)["0"].input_scale) == ranges["0"].scale != RANGES["0"].scale
    assert torch.equal(model(x), expected)


def test_gradients_stop_where_values_are_clipped():
    x = torch.tensor([-9.0, -1.0, 0.3, 2.0, 9.0], requires_grad=True)
    rounded = InputQuantizer(InputScheme(4), InputRange(0.25, 6))(x)
    rounded.sum().backward()
    assert rounded.tolist() == [-1.5, -1.0, 0.25, 2.0, 2.25]
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("scheme", [InputScheme(4), InputScheme(5, symmetric=True)])
def test_the_gradient_of_a_range_is_that_of_lsq(scheme):
    x = vectors(16)[0].double()
    first = range_between(-0.8, 1.3, scheme)
    inputs = InputQuantizer(scheme, first)
    seen = x.float().requires_grad_()
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    (inputs(seen).double() * weights).sum().backward()
    scale, exact = torch.tensor(first.scale, dtype=torch.float64, requires_grad=True), x.clone().requires_grad_()
    steps, low, high = exact / scale, -first.zero_point, 2**scheme.bits - 1 - first.zero_point
    level = steps.detach().round().clamp(low, high)
    inside = (steps >= low - 0.5) & (steps <= high + 0.5)
    (torch.where(inside, steps + (level - steps).detach(), level) * scale * weights).sum().backward()
    gradient_scale = 1 / (x.shape[1] * max(-low, high)) ** 0.5  # N values a sample, largest level Q
    expected = float(scale.grad) * gradient_scale / first.scale
    assert float(inputs.relative_scale.grad) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(seen.grad.double(), exact.grad, atol=1e-6, rtol=1e-6)


def test_a_range_that_is_too_wide_is_drawn_in():
    model, (x,) = mlp(6, 8, 3), vectors(64)
    target = model(x).detach()
    losses = {}
    for learn in (True, False):
        net = copy.deepcopy(model)
        handle = fake_quantize(net, POLICY, ranges={"0": range_between(-9, 9, SCHEMES["0"])}, learn_ranges=learn)
        optimizer = torch.optim.Adam(handle.parameters(), 0.02)
        for _ in range(60):
            optimizer.zero_grad()
            loss = mse_loss(net(x), target)
            loss.backward()
            optimizer.step()
        losses[learn] = float(loss.detach())
        assert (handle.ranges["0"].scale < 0.7 * 18 / 63) is learn
    assert losses[True] < 0.85 * losses[False]


def test_ranges_that_are_one_stay_one_and_each_learns_once():
    model = nn.ModuleDict({name: nn.Linear(6, 6) for name in ("q", "k", "out")})
    policy = BitPolicy(dict.fromkeys(model, LayerScheme(WeightScheme(4), InputScheme(4))))
    one, other = range_between(-1, 2, InputScheme(4)), range_between(-1, 1, InputScheme(4))
    handle = fake_quantize(model, policy, ranges={"q": one, "k": one, "out": other})
    (x,) = vectors(8)
    optimizer = torch.optim.SGD(handle.parameters(), 0.5)
    (model["q"](x) + 2 * model["k"](x) + model["out"](x)).square().sum().backward()
    optimizer.step()
    assert [name for name, _ in handle.named_parameters()] == ["q", "k", "out", "q.input", "out.input"]
    assert handle.ranges["q"] == handle.ranges["k"] != one
    assert handle.ranges["out"] != handle.ranges["q"]
    held = next(each for each in handle.learned() if each.name == "q.input")
    assert {id(w) for w in held.weights} == {id(model[name]._parameters["weight"]) for name in ("q", "k")}


def test_ranges_may_stay_and_casts_leave_them():
    model = mlp(6, 8, 3)
    handle = fake_quantize(model, POLICY, ranges=RANGES, learn_ranges=False)
    assert [name for name, _ in handle.named_parameters()] == ["0", "2"]
    model.half().float()
    assert handle.ranges == RANGES
    handle.restore()
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    parameter = handle.inputs["0"].relative_scale
    model.double().to("cpu")
    assert parameter is handle.inputs["0"].relative_scale
    assert parameter.dtype == torch.float32


@pytest.mark.parametrize("learned", [float("nan"), 0.0, -3.0, 1e30])
def test_a_range_moves_within_a_factor_and_nan_is_told(learned):
    model = mlp(6, 8, 3)
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    handle.inputs["0"].relative_scale.data.fill_(learned)
    if learned != learned:
        with pytest.raises(NonFiniteError, match="learned range of the inputs of '0' is NaN"):
            handle.pack()
        assert type(model[0]).__name__ == "FakeQuantizedLinear"
        return
    assert handle.ranges["0"].scale == pytest.approx(RANGES["0"].scale * (4 if learned > 1 else 0.25))
    handle.pack()


def test_a_saved_state_brings_ranges_back():
    model, (x,) = mlp(6, 8, 3), vectors(16)
    twin = copy.deepcopy(model)
    handle = fake_quantize(model, POLICY, ranges=RANGES)
    handle.inputs["0"].relative_scale.data.fill_(1.25)
    state = handle.state_dict()
    twin.load_state_dict(model.state_dict())
    packed = copy.deepcopy(twin)
    resumed = resume_fake_quantization(twin, state)
    assert torch.equal(twin(x), model(x))
    assert resumed.ranges == handle.ranges
    assert resumed.ranges["0"].scale == pytest.approx(1.25 * RANGES["0"].scale)
    assert "0.input" in dict(resumed.named_parameters())
    pack_finetuned(packed, state)
    assert torch.equal(packed(x), model(x))
    resumed.restore()
    assert type(twin[0]).__name__ == "Linear"
    assert not twin[0]._forward_pre_hooks
    del state["learned_ranges"]  # as it was before ranges could learn
    before = resume_fake_quantization(twin, state)
    assert before.ranges == RANGES
    assert "0.input" not in dict(before.named_parameters())


def test_ranges_are_asked_for():
    with pytest.raises(ValueError, match="The range of the inputs of '0' .6-bit inputs. is not known"):
        fake_quantize(mlp(6, 8, 3), POLICY)
    with pytest.raises(TypeError, match=r"ranges must be a mapping from names to InputRange or None, got .'0': 2"):
        fake_quantize(mlp(6, 8, 3), POLICY, ranges={"0": 2.5})
