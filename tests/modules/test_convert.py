"""Whole models: every layer the policy names is replaced, under every name, or nothing is."""

import copy
import pickle

import pytest
import torch
from helpers.numbers import assert_agree
from helpers.saved_net import INDICES, POLICY
from helpers.state import state_of
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lightning_mpq.errors import NonFiniteError
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import (
    PackedEmbedding,
    PackedLayer,
    PackedLinear,
    empty_packed_model,
    pack_layer,
    pack_model,
    packed_layers,
    policy_of,
    restore_layers,
    set_memory,
    stored_bytes,
)
from lightning_mpq.network.layer_kinds import rows_and_columns, weight_rows
from lightning_mpq.policy import BitPolicy
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme


class Net(nn.Module):
    """A weight used twice (tied), a layer under two names, BatchNorm, a plain buffer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.conv = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
        self.mix = nn.Linear(6, 6)
        self.again = self.mix
        self.head = nn.Linear(6, 11)
        self.head.weight = self.table.weight
        self.register_buffer("shift", torch.arange(11.0))

    def forward(self, indices):
        features = self.conv(self.table(indices).transpose(1, 2)).transpose(1, 2)
        return self.head(self.again(self.mix(features))) + self.shift


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def dequantized_copy(net, policy=POLICY):
    """The oracle: a float model in which each weight is rounded by hand."""
    oracle = copy.deepcopy(net)
    for group, names in policy.layers.items():
        weight = oracle.get_submodule(names[0]).weight
        rows = quantize_rows(weight_rows(oracle.get_submodule(names[0])), policy[group].weight).dequantize()
        weight.data = rows.reshape(weight.shape)
    return oracle


def snapshot(net):
    """Everything an error must leave alone: which objects stand where, and their values."""
    objects = {name: id(module) for name, module in net.named_modules(remove_duplicate=False)}
    return objects, state_of(net)


def assert_unchanged(net, before):
    objects, values = snapshot(net)
    assert objects == before[0]
    assert values.keys() == before[1].keys()
    for name, value in values.items():
        torch.testing.assert_close(value, before[1][name], rtol=0, atol=0, equal_nan=True)


def test_the_packed_model_computes_what_the_dequantized_one_does(net):
    oracle = dequantized_copy(net)
    floats = pack_model(net, POLICY)
    assert_agree(net(INDICES), oracle(INDICES))
    assert list(floats) == ["table", "head", "conv.0", "mix"]
    assert set(packed_layers(net)) == set(floats)
    assert not any(isinstance(layer, PackedLayer) for layer in floats.values())
    assert not net.training
    assert not any(module.training for module in net.modules())


def test_a_layer_under_two_names_stays_one_and_tied_layers_share_their_buffers(net):
    pack_model(net, POLICY)
    net._apply(torch.clone)  # what a move to another device does
    assert net.again is net.mix
    assert isinstance(net.mix, PackedLinear)
    assert isinstance(net.table, PackedEmbedding)
    for moved in (net, net.double(), net.half(), copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net.to("cpu")):
        assert moved.table.packed_codes is moved.head.packed_codes
        assert moved.table.scale is moved.head.scale
        assert moved.table.zero_point is moved.head.zero_point
        assert moved.again is moved.mix


def test_layers_come_back(net):
    before = snapshot(net)
    restore_layers(net, pack_model(net, POLICY))
    assert_unchanged(net, before)
    assert net.head.weight is net.table.weight
    restore_layers(net, empty_packed_model(net, POLICY))
    assert_unchanged(net, before)


def test_given_rounding_is_used_and_the_rest_is_rounded_to_nearest(net):
    rows = quantize_rows(torch.randn(6, 6), POLICY["mix"].weight)
    oracle = dequantized_copy(net)
    oracle.mix.weight.data = rows.dequantize()
    pack_model(net, POLICY, {"mix": rows})
    assert_agree(net(INDICES), oracle(INDICES))


@pytest.mark.parametrize("given", ["table", "head"])
def test_rounding_given_under_any_name_of_a_tied_weight_is_used(net, given):
    rows = quantize_rows(torch.randn(11, 6), POLICY["tied"].weight)
    pack_model(net, POLICY, {given: rows})
    assert torch.equal(net.table.weight, rows.dequantize())
    assert net.head.packed_codes is net.table.packed_codes


def test_an_empty_packed_model_takes_the_state_of_a_packed_one(net):
    blank = Net().eval()
    pack_model(net, POLICY)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.fill_(torch.nan)  # nothing may be rounded
    empty_packed_model(blank, POLICY)
    shapes = {name: (value.shape, value.dtype) for name, value in net.state_dict().items()}
    assert {name: (value.shape, value.dtype) for name, value in blank.state_dict().items()} == shapes
    blank.load_state_dict(net.state_dict())
    assert torch.equal(blank(INDICES), net(INDICES))
    assert policy_of(blank) == policy_of(net) == POLICY
    assert blank.table.packed_codes is blank.head.packed_codes


def test_an_empty_packed_model_on_the_meta_device_takes_a_state_by_assignment(net):
    pack_model(net, POLICY)
    with torch.device("meta"):
        shell = Net().eval()
    empty_packed_model(shell, POLICY)
    assert shell.table.packed_codes.is_meta
    shell.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(shell(INDICES), net(INDICES))


def test_bytes_are_counted_on_the_real_tensors(net):
    groups = find_groups(net)
    assert stored_bytes(net).packed == 0
    pack_model(net, POLICY)
    counted = stored_bytes(net)
    by_scheme = [(POLICY["tied"], (11, 6)), (POLICY["conv.0"], (6, 18)), (POLICY["mix"], (6, 6))]
    assert counted.packed * 8 == sum(scheme.stored_bits(*shape) for scheme, shape in by_scheme)
    assert counted.floating == groups.float_bytes
    assert (counted.cached, counted.total) == (0, counted.packed + counted.floating)


def test_fast_memory_of_a_model_states_its_bytes_and_changes_no_output(net):
    pack_model(net, POLICY)
    expected, stored = net(INDICES), stored_bytes(net)
    cost = set_memory(net, "fast")
    assert cost == 4 * (66 + 108 + 36)  # the tied weight once
    assert stored_bytes(net) == stored._replace(cached=cost)
    assert_agree(net(INDICES), expected)
    assert set_memory(net, "packed") == 0


def test_the_policy_is_read_from_the_layers(net):
    assert policy_of(net) == BitPolicy({})
    pack_model(net, POLICY)
    assert policy_of(net) == POLICY
    lone = nn.Sequential(pack_layer(nn.Linear(3, 2), quantize_rows(torch.randn(2, 3), WeightScheme(3))))
    assert policy_of(lone) == BitPolicy({"0": WeightScheme(3)})


def policy_for(**schemes):
    return BitPolicy({name.replace("__", "."): scheme for name, scheme in schemes.items()})


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        (policy_for(mix=WeightScheme(3), gone=WeightScheme(3)), ValueError, "'gone', which Net does not have.*'?table"),
        (policy_for(mix=WeightScheme(3), conv__1=WeightScheme(3)), TypeError, "'conv.1' is of type BatchNorm1d"),
        (policy_for(table=WeightScheme(3), head=WeightScheme(4)), ValueError, "'table' and 'head' share one weight"),
    ],
)
@pytest.mark.parametrize("convert", [pack_model, empty_packed_model])
def test_a_policy_for_other_layers_changes_nothing(net, convert, policy, error, message):
    before = snapshot(net)
    with pytest.raises(error, match=message):
        convert(net, policy)
    assert_unchanged(net, before)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named_and_nothing_changes(net, value):
    net.mix.weight.data[0, 0] = value
    before = snapshot(net)
    with pytest.raises(NonFiniteError, match="Layer 'mix': 1 of 36 weights"):
        pack_model(net, POLICY)
    assert_unchanged(net, before)


def test_rounded_weights_that_do_not_fit_change_nothing(net):
    before = snapshot(net)
    scheme = POLICY["mix"].weight
    for name, rows, message in [
        ("mix", quantize_rows(torch.randn(6, 5), scheme), r"Layer 'mix': Expected .*\[6, 6\].*got \[6, 5\]"),
        ("mix", quantize_rows(torch.randn(6, 6), WeightScheme(7)), "'mix' is 7-bit .* but the policy says 2-bit"),
        ("shift", quantize_rows(torch.randn(6, 6), scheme), "'shift', which the policy does not name"),
    ]:
        with pytest.raises(ValueError, match=message):
            pack_model(net, POLICY, {name: rows})
        assert_unchanged(net, before)


def test_layers_that_cannot_be_packed_are_named():
    scheme = WeightScheme(4)
    with pytest.raises(ValueError, match="wrap it in nn.Sequential"):
        pack_model(nn.Linear(3, 2), BitPolicy({"": scheme}))
    packed = nn.Sequential(nn.Linear(3, 2))
    pack_model(packed, BitPolicy({"0": scheme}))
    with pytest.raises(TypeError, match="Layer '0' is packed already"):
        pack_model(packed, BitPolicy({"0": scheme}))
    patched, buffered = nn.Linear(3, 2), nn.Linear(3, 2)
    patched.forward = lambda inputs: inputs
    buffered.register_buffer("scale", torch.ones(1))
    for layer, message in [
        (weight_norm(nn.Linear(3, 2)), "computes its weight|is of type ParametrizedLinear"),
        (nn.LazyLinear(2), "not initialized yet|is of type LazyLinear"),
        (nn.LayerNorm(3), "is of type LayerNorm"),
        (patched, "forward of its own"),
        (buffered, "attribute 'scale' of its own"),
    ]:
        with pytest.raises(TypeError, match=message):
            pack_model(nn.Sequential(layer), BitPolicy({"0": scheme}))


def test_a_subclass_that_keeps_forward_keeps_its_methods_and_computes_as_its_parent():
    class Named(nn.Linear):
        def width(self):
            return self.out_features

    model = nn.Sequential(Named(3, 2))
    assert rows_and_columns(model[0]) == (2, 3)
    twin = nn.Sequential(nn.Linear(3, 2))
    twin.load_state_dict(model.state_dict())
    for net in (model, twin):
        pack_model(net, BitPolicy({"0": WeightScheme(4)}))
    inputs = torch.randn(5, 3)
    assert isinstance(model[0], Named)
    assert isinstance(model[0], PackedLinear)
    assert model[0].width() == 2
    assert_agree(model(inputs), twin(inputs))


def test_training_goes_on_around_packed_layers(net):
    pack_model(net, POLICY)
    codes = net.mix.packed_codes.clone()
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    bias = net.mix.bias.detach().clone()
    net(INDICES).square().mean().backward()
    optimizer.step()
    assert not torch.equal(net.mix.bias, bias)
    assert torch.equal(net.mix.packed_codes, codes)


def test_a_compiled_model_notices_that_its_layers_were_replaced(net):
    torch._dynamo.reset()
    oracle = dequantized_copy(net)
    compiled = torch.compile(net, backend="eager")
    before = compiled(INDICES)
    floats = pack_model(net, POLICY)
    assert_agree(compiled(INDICES), oracle(INDICES))
    restore_layers(net, floats)
    assert_agree(compiled(INDICES), before)
