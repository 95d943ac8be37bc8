"""Packed layers compute what the float layer with explicitly rounded weight and inputs computes."""

import copy

import pytest
import torch
from helpers.layers import LAYER_CASES, LAYER_SCHEMES, assert_exports_and_compiles, packed_and_oracle
from helpers.networks import convnet, images, mlp, vectors
from helpers.numbers import assert_agree
from torch import nn

from lightning_mpq import load, save, set_memory
from lightning_mpq.inputs.quantizer import InputRange, range_between
from lightning_mpq.modules import empty_packed_model, pack_model, packed_layers, policy_of, stored_bytes
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

KINDS = [
    "linear", "linear-no-bias", "conv1d", "conv2d", "conv2d-groups", "conv2d-depthwise", "conv2d-circular", "conv3d",
    "conv-transpose1d", "conv-transpose2d-groups", "conv-transpose3d",
]  # fmt: skip
EIGHT = InputScheme(8)


def explicitly(x: torch.Tensor, found: InputRange, bits: int) -> torch.Tensor:
    codes = torch.round(x / torch.tensor(found.scale)) + found.zero_point
    return (codes.clamp(0, 2**bits - 1) - found.zero_point) * torch.tensor(found.scale)


def packed_convnet(scheme: InputScheme = EIGHT) -> nn.Module:
    """A network whose inputs are quantized, ranges and all."""
    model = convnet().eval()
    policy = BitPolicy({name: LayerScheme(WeightScheme(6), scheme) for name in ("conv", "head")})
    pack_model(model, policy, ranges={"conv": range_between(-2, 3, scheme), "head": range_between(0, 2.5, scheme)})
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [8, 4])
def test_computes_what_the_float_layer_with_rounded_inputs_does(kind, bits):
    packed, oracle, inputs = packed_and_oracle(kind, LAYER_SCHEMES[0])
    found = range_between(-1.5, 2.0, InputScheme(bits))
    packed.set_inputs(InputScheme(bits), found)
    assert_agree(packed(inputs), oracle(explicitly(inputs, found, bits)))
    assert not torch.equal(packed(inputs), oracle(inputs))


def test_a_token_is_rounded_by_its_own_range():
    packed, oracle, inputs = packed_and_oracle("linear-no-bias", LAYER_SCHEMES[0])
    packed.set_inputs(InputScheme(5, "token"), None)
    rows = inputs.flatten(0, 1)
    rounded = [explicitly(r, range_between(float(r.min()), float(r.max()), InputScheme(5)), 5) for r in rows]
    torch.testing.assert_close(packed(inputs).flatten(0, 1), oracle(torch.stack(rounded)))
    longer = torch.cat([inputs, inputs], 1)  # of another sequence length
    assert_agree(packed(longer)[:, :4], packed(inputs))


@pytest.mark.parametrize("kind", ["linear", "conv2d", "conv-transpose1d"])
def test_exports_compiles_and_copies(kind):
    packed, _, inputs = packed_and_oracle(kind, LAYER_SCHEMES[1])
    packed.set_inputs(InputScheme(6), range_between(-1.5, 2.0, InputScheme(6)))
    expected = packed(inputs)
    assert_exports_and_compiles(packed, inputs, expected)
    assert torch.equal(copy.deepcopy(packed)(inputs), expected)


def test_a_policy_packs_inputs_and_is_read_back():
    model = packed_convnet()
    assert policy_of(model).inputs() == {"conv": EIGHT, "head": EIGHT}
    assert "8-bit inputs" in repr(model.conv)
    assert stored_bytes(model).packed == sum(layer.stored_bytes for layer in packed_layers(model).values())
    plain = convnet()
    pack_model(plain, BitPolicy({name: WeightScheme(6) for name in ("conv", "head")}))
    assert stored_bytes(model).packed == stored_bytes(plain).packed + 2 * 5


@pytest.mark.parametrize("scheme", [EIGHT, InputScheme(5, symmetric=True)])
def test_saved_and_loaded_it_computes_the_same(scheme, tmp_path):
    model, (x,) = packed_convnet(scheme), images(3)
    save(model, tmp_path)
    again = load(tmp_path, convnet().eval())
    assert policy_of(again) == policy_of(model)
    assert torch.equal(again(x), model(x))


def test_the_range_is_in_the_state_dict_and_casts_leave_it():
    model, (x,) = packed_convnet(), images(3)
    state = model.state_dict()
    assert state["head.input_scale"].dtype == torch.float32
    assert state["head.input_zero_point"].dtype == torch.uint8
    twin = convnet().eval()
    empty_packed_model(twin, policy_of(model))
    twin.load_state_dict(state)
    assert torch.equal(twin(x), model(x))
    half = copy.deepcopy(model).half()
    assert half.head.input_scale.dtype == torch.float32
    assert torch.equal(half.head.input_scale, model.head.input_scale)
    assert half.head.quantized_input(torch.ones(1, 64, dtype=torch.float16)).dtype == torch.float16
    set_memory(model, "fast")
    assert torch.equal(twin(x), model(x))


def test_a_state_without_the_range_is_refused():
    model = packed_convnet()
    state = {name: value for name, value in model.state_dict().items() if name != "head.input_scale"}
    with pytest.raises(RuntimeError, match="head.input_scale is missing"):
        model.load_state_dict(state)


def test_inputs_of_tied_layers_have_ranges_of_their_own():
    model = mlp(6, 6, 6)
    model[2].weight = model[0].weight
    both = BitPolicy({"both": LayerScheme(WeightScheme(4), EIGHT)}, {"both": ("0", "2")})
    pack_model(model, both, ranges={"0": InputRange(0.5, 0), "2": InputRange(0.25, 3)})
    assert model[0].packed_codes is model[2].packed_codes
    assert [float(model[i].input_scale) for i in (0, 2)] == [0.5, 0.25]


def test_a_kernel_multiplies_the_rounded_inputs():
    model, (x,) = mlp(6, 3), vectors(4)
    pack_model(model, BitPolicy({"0": LayerScheme(WeightScheme(8), EIGHT)}), ranges={"0": range_between(-2, 2, EIGHT)})
    expected = model(x)
    model[0].kernel_choice = "auto"
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("name", "scheme", "said"),
    [
        ("embed", EIGHT, "cannot be quantized: it is of type Embedding here"),
        ("conv", InputScheme(8, "token"), "granularity='token' is for Linear layers"),
        ("conv", EIGHT, "The range of the inputs of 'conv' .8-bit inputs. is not known"),
    ],
)
def test_refusals_name_the_layer(name, scheme, said):
    model = nn.ModuleDict({"embed": nn.Embedding(4, 4), "conv": nn.Conv2d(1, 1, 1)})
    with pytest.raises(ValueError, match=said):
        pack_model(model, BitPolicy({name: LayerScheme(WeightScheme(4), scheme)}))
    assert not packed_layers(model)


def test_every_kind_with_a_forward_of_its_own_type_is_tried():
    plain = {name for name, (make, _) in LAYER_CASES.items() if not isinstance(make(), nn.Embedding)}
    assert plain - set(KINDS) == {"conv2d-same-padding", "linear-centred"}
