"""Experts fused to one tensor: how they are found, seen, rounded and packed."""

import copy

import pytest
import torch
from helpers.wrapped_layers import (
    BatchedExperts,
    Routed,
    RoutedAtOnce,
    RoutedInOrder,
    RoutedTransposed,
    TransposedExperts,
)
from torch import Tensor, nn

from lightning_mpq.groups.candidates import offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import PackedLayer, PackedWeight, pack_model
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.experts import is_transposed
from lightning_mpq.network.layer_calls import LayerCall, watched
from lightning_mpq.network.layer_kinds import row_parts, rows_and_columns, rows_to_weight, weight_rows
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


@pytest.mark.parametrize("kind", [TransposedExperts, BatchedExperts])
def test_the_other_layout_goes_there_and_back(kind):
    experts = kind()  # [E, in, out]
    view = named_layers(experts)["gate_up_proj"]
    rows = weight_rows(view)
    assert torch.equal(rows[7], experts.gate_up_proj[1, :, 1])
    assert torch.equal(rows_to_weight(view, rows, view.weight.shape), view.weight)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([(6, 4), (4, 3)], False),  # [out, in], a gate and what it lets through in one
        ([(4, 6), (3, 4)], True),
        ([(5, 4), (4, 5)], False),  # no gate: a square of either
        ([(4, 5), (5, 4)], False),
        ([(6, 3), (3, 3)], False),
        ([(3, 6), (3, 3)], True),
        ([(4, 6)], False),  # nothing to tell it by
    ],
)
def test_which_way_round_weights_are_is_seen_by_what_follows_what(shapes, expected):
    module = type("Experts", (nn.Module,), {})()
    module.num_experts = 2
    for number, shape in enumerate(shapes):
        setattr(module, f"weight{number}", nn.Parameter(torch.zeros(2, *shape)))
    assert is_transposed(module) is expected


@pytest.mark.parametrize("kind", [Routed, RoutedTransposed, RoutedAtOnce, RoutedInOrder])
def test_what_is_seen_times_the_rows_are_the_outputs(kind):
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    layers = {name: layer for name, layer in named_layers(model).items() if name.startswith("experts.")}
    seen = []

    def note(call: LayerCall, output: Tensor) -> Tensor:
        seen.append(call.layer)
        torch.testing.assert_close(call.inputs @ weight_rows(layers[call.layer])[call.rows].mT, output)
        return 2 * output if call.layer == list(layers)[-1] else output

    expected = model(x)
    with watched(model, layers, note):
        torch.testing.assert_close(model(x), 2 * expected)  # what is returned takes the output's place
    assert sorted(seen) == sorted(3 * list(layers))


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


@pytest.mark.parametrize("kind", [Routed, RoutedTransposed, RoutedAtOnce, RoutedInOrder])
@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_packed_experts_compute_as_float_ones_with_the_dequantized_weights(kind, rounding, monkeypatch):
    torch.manual_seed(0)
    model, x = kind().double(), torch.randn(6, 5, 4, dtype=torch.float64)
    names = [name for name in named_layers(model) if name.startswith("experts.")]
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
    assert len(calls) == len(names)  # once for each weight, not for each expert
    assert {f"{name}.packed_codes" for name in names} < model.state_dict().keys()


@pytest.mark.parametrize("kept", ["gate_up_proj", "down_proj"])
def test_a_weight_that_is_left_in_float_stays_the_way_round_it_was(kept):
    model = RoutedAtOnce()
    groups = find_groups(model, keep_float=[f"experts.{kept}"])
    pack_model(model, BitPolicy({group.name: offered_schemes([8], "nearest")[0] for group in groups}))
    assert is_transposed(model.experts)
    assert rows_and_columns(named_layers(model)[f"experts.{kept}"]) == ((18, 4) if kept == "gate_up_proj" else (12, 3))
