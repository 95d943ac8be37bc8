"""Experts fused to one tensor: how they are found, seen, rounded and packed."""

import copy

import pytest
import torch
from helpers.wrapped_layers import Experts, Routed
from torch import Tensor, nn

from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import PackedLayer, PackedWeight, pack_model
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.layer_calls import LayerCall, watched
from lightning_mpq.network.layer_kinds import row_parts, rows_to_weight, weight_rows
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.policy import BitPolicy
from lightning_mpq.rounding.independent import round_policy
from lightning_mpq.rounding.input_moments import input_moments

NAMES = ("experts.gate_up_proj", "experts.down_proj")


def routed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Routed().double(), torch.randn(6, 5, 4, dtype=torch.float64)


def test_a_row_is_an_output_of_one_expert():
    model, _ = routed()
    view = named_layers(model)[NAMES[0]]
    rows = weight_rows(view)
    assert rows.shape == (18, 4)
    assert row_parts(view) == 3
    assert torch.equal(rows[7], model.experts.gate_up_proj[1, 1])
    assert torch.equal(rows_to_weight(view, rows, view.weight.shape), view.weight)
    assert find_groups(model).coverage.share > 0.9


def test_the_other_layout_goes_there_and_back():
    experts = Experts()
    experts.is_transposed = True  # [E, in, out]
    view = named_layers(experts)["gate_up_proj"]
    rows = weight_rows(view)
    assert torch.equal(rows[5], experts.gate_up_proj[1, :, 1])
    assert torch.equal(rows_to_weight(view, rows, view.weight.shape), view.weight)


def test_each_product_says_its_expert_and_its_tokens():
    model, x = routed()
    layers = {name: named_layers(model)[name] for name in NAMES}
    tokens, seen = x.reshape(-1, 4), list[LayerCall]()

    def note(call: LayerCall, output: Tensor) -> Tensor:
        seen.append(call)
        return output

    with watched(model, layers, note):
        model(x)
    for call in seen:
        if call.layer == NAMES[0]:
            assert torch.equal(call.inputs, tokens[call.tokens])
        assert call.token_count == 30
    index = model.router(tokens).topk(2)[1]
    for name in NAMES:
        own = {call.rows.start // (6 if "gate" in name else 4): call for call in seen if call.layer == name}
        for expert, call in own.items():
            assert set(call.tokens.tolist()) == set((index == expert).any(1).nonzero()[:, 0].tolist())


def test_each_expert_has_a_moment_of_its_own_and_one_that_no_token_meets_none():
    model, x = routed()
    with torch.no_grad():
        model.router.bias[2] = -1e3
    layers = {name: named_layers(model)[name] for name in NAMES}
    moment = input_moments(Calibration(model, [x, x[:2]]), layers)[id(model.experts.gate_up_proj)]
    tokens = torch.cat([x, x[:2]]).reshape(-1, 4)
    expected = tokens.T @ tokens / len(tokens)
    torch.testing.assert_close(moment.matrix()[0], expected)  # of two experts, both are met by all
    assert moment.part_counts.tolist() == [40, 40, 0]


@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_packed_experts_compute_as_float_ones_with_the_dequantized_weights(rounding, monkeypatch):
    model, x = routed()
    groups = find_groups(model)
    scheme = offered_schemes([3], rounding, grids=["half"])[0]
    policy = BitPolicy({g.name: scheme for g in groups}, {g.name: g.layers for g in groups})
    rounded = round_policy(Calibration(model, [x]), policy)
    oracle = copy.deepcopy(model)
    for name, layer in named_layers(oracle).items():
        if name in rounded:
            weight = rows_to_weight(layer, rounded[name].dequantize(torch.float64), layer.weight.shape)
            layer.weight.data.copy_(weight)
    pack_model(model, policy, rounded)
    calls = []
    monkeypatch.setattr(PackedWeight, "dequantize", lambda self: calls.append(1) or PackedLayer.dequantize(self))
    assert torch.equal(model(x), oracle(x))
    assert len(calls) == 2  # once for each weight, not for each expert
    assert "experts.gate_up_proj.packed_codes" in model.state_dict()
