"""Fake quantization in place: same objects and keys, the packed model's numbers, and every way back."""

import copy
import pickle

import pytest
import torch
from helpers.layers import LAYER_CASES
from helpers.state import state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.finetune import FakeQuantizedLayer, fake_quantize, fake_quantized_layers
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.modules import pack_model
from lightning_mpq.network.layer_kinds import weight_rows
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import QuantizedRows, quantize_rows
from lightning_mpq.schemes import WeightScheme

SCHEMES = st.builds(
    WeightScheme,
    bits=st.integers(2, 8),
    granularity=st.sampled_from(["tensor", "channel", 3, 4]),
    grid=st.sampled_from(DEFAULT_GRIDS),
    clip=st.sampled_from(["absmax", "mse", 0.6]),
    scale_dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
)


def other_codes(layer, scheme, seed):
    """Codes one step beside the nearest here and there, as error feedback chooses them."""
    nearest = quantize_rows(weight_rows(layer), scheme)
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(-1, 2, nearest.codes.shape, generator=generator)
    codes = (nearest.codes.int() + steps).clamp(0, 2**scheme.bits - 1).to(torch.uint8)
    return QuantizedRows(codes, nearest.scale, nearest.zero_point, scheme)


@pytest.mark.parametrize("kind", LAYER_CASES)
@settings(max_examples=6)
@given(scheme=SCHEMES, seed=st.integers(0, 99))
def test_forward_is_the_packed_layers_from_given_codes_and_after_training(kind, scheme, seed):
    torch.manual_seed(seed)
    make_layer, make_input = LAYER_CASES[kind]
    net, x = nn.Sequential(make_layer()), make_input()
    policy = BitPolicy({"0": scheme})
    start = other_codes(net[0], scheme, seed)
    packed = copy.deepcopy(net)
    pack_model(packed, policy, {"0": start})
    handle = fake_quantize(net, policy, {"0": start})
    assert torch.equal(net[0].weight, packed[0].weight)
    # Equal weights give equal outputs, up to the order of sums.
    assert torch.allclose(net(x), packed(x), rtol=1e-5, atol=1e-6)
    optimizer = torch.optim.SGD([*net.parameters(), *handle.parameters()], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    outputs, last, codes = net(x), net[0].weight.detach(), handle.quantized_rows()["0"].codes
    handle.pack()
    assert torch.equal(net[0].weight, last)
    assert torch.allclose(net(x), outputs, rtol=1e-5, atol=1e-6)
    assert torch.equal(net[0].codes(), codes)


@pytest.mark.parametrize("grid", DEFAULT_GRIDS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_every_scheme_starts_from_the_codes_and_ends_in_those_of_the_last_forward(bits, grid):
    for granularity in ("tensor", "channel", 3, 50):
        for scale_dtype in ("bfloat16", "float16", "float32"):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                torch.manual_seed(bits)
                net = nn.Sequential(nn.Linear(11, 3, dtype=dtype))
                scheme = WeightScheme(bits, granularity, grid, clip=0.8, scale_dtype=scale_dtype)
                start = other_codes(net[0], scheme, bits)
                handle = fake_quantize(net, BitPolicy({"0": scheme}), {"0": start})
                assert torch.equal(handle.quantized_rows()["0"].codes, start.codes)
                assert torch.equal(net[0].weight, start.dequantize(dtype))
                with torch.no_grad():
                    net[0]._parameters["weight"].add_(0.1 * torch.randn(3, 11, dtype=dtype))
                    next(handle.parameters()).mul_(1.07)
                last = net[0].weight.detach()
                handle.pack()
                assert torch.equal(net[0].weight, last)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


POLICY = BitPolicy({"0": WeightScheme(2, grid="half"), "4": WeightScheme(3, granularity=5)})
IMAGES = torch.randn(6, 2, 4, 4)


def test_objects_keys_and_signature_stay():
    net = small_net()
    parameters = {name: id(value) for name, value in net.named_parameters()}
    modules = {name: id(value) for name, value in net.named_modules()}
    keys = list(net.state_dict())
    handle = fake_quantize(net, POLICY)
    assert {name: id(value) for name, value in net.named_parameters()} == parameters
    assert {name: id(value) for name, value in net.named_modules()} == modules
    assert list(net.state_dict()) == keys
    assert type(net[0]).forward is nn.Conv2d.forward
    assert isinstance(net[0], (nn.Conv2d, FakeQuantizedLayer))
    assert net[0].state_dict()["weight"].data_ptr() == net[0]._parameters["weight"].data_ptr()
    fresh = small_net()
    fresh.load_state_dict(net.state_dict())
    handle.restore()
    assert type(net[0]) is nn.Conv2d
    assert vars(net[0]).keys() == vars(fresh[0]).keys()
    assert torch.equal(net.eval()(IMAGES), fresh.eval()(IMAGES))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_compute_the_same_and_learn_alone(how):
    net = small_net().eval()
    handle = fake_quantize(net, POLICY)
    twin = how(net)
    assert torch.equal(twin(IMAGES), net(IMAGES))
    assert list(fake_quantized_layers(twin)) == ["0", "4"]
    next(handle.parameters()).data.mul_(2)
    assert not torch.equal(twin(IMAGES), net(IMAGES))


def test_weights_are_float_inside_of_a_with_block():
    net = small_net().eval()
    handle = fake_quantize(net, POLICY)
    rounded = net(IMAGES)
    plain = small_net().eval()
    plain.load_state_dict(net.state_dict())
    with handle.float_weights():
        assert torch.equal(net(IMAGES), plain(IMAGES))
    assert torch.equal(net(IMAGES), rounded)


def test_state_is_resumed_in_another_process():
    net = small_net().eval()
    handle = fake_quantize(net, POLICY)
    for scale in handle.parameters():
        scale.data.mul_(1.3)
    twin = small_net().eval()
    other = fake_quantize(twin, POLICY)
    twin.load_state_dict(net.state_dict())
    other.load_state_dict(handle.state_dict())
    assert torch.equal(twin(IMAGES), net(IMAGES))
    with pytest.raises(ValueError, match="another policy"):
        other.load_state_dict({**handle.state_dict(), "policy": BitPolicy({"0": WeightScheme(2)}).to_json()})


def test_tied_weights_share_a_quantizer():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False))
    net[1].weight = net[0].weight
    policy = BitPolicy({"tied": WeightScheme(3)}, {"tied": ("0", "1")})
    handle = fake_quantize(net, policy)
    assert net[0].weight_quantizers["weight"] is net[1].weight_quantizers["weight"]
    assert len(list(handle.parameters())) == 1
    indices = torch.arange(6)
    last = net(indices)
    handle.pack()
    assert torch.equal(net(indices), last)
    assert net[0].packed_codes is net[1].packed_codes


def test_tied_weights_with_other_rows_are_refused():
    net = nn.Sequential(nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 4, 3))
    net[1].weight = net[0].weight
    before = net[0].weight.detach().clone()
    with pytest.raises(ValueError, match="untie"):
        fake_quantize(net, BitPolicy({"tied": WeightScheme(3)}, {"tied": ("0", "1")}))
    assert type(net[0]) is nn.Conv1d
    assert torch.equal(net[0].weight, before)


def test_errors_leave_the_model_as_it_was():
    net = small_net()
    before = state_of(net)
    with pytest.raises(ValueError, match="nowhere"):
        fake_quantize(net, BitPolicy({"0": WeightScheme(2), "nowhere": WeightScheme(2)}))
    handle = fake_quantize(net, POLICY)
    with pytest.raises(ValueError, match="already"):
        fake_quantize(net, POLICY)
    with torch.no_grad():
        next(net.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="Layer '0'"):
        handle.pack()
    assert isinstance(net[0], FakeQuantizedLayer)
    assert before.keys() == net.state_dict().keys()
