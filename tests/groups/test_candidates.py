"""Which schemes a group may be given."""

from dataclasses import replace

import pytest
import torch
from helpers.networks import mlp
from helpers.profiles import nearest_candidates
from torch import nn

from lightning_mpq.groups.candidates import make_candidates, offered_schemes
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme


def test_candidates_follow_rules_and_refuse_gaps():
    found = find_groups(mlp(4, 4, 4, 3), fixed_bits={"4": 8})
    candidates = nearest_candidates(found, bits=[4, 8])
    assert [(c.group, c.scheme.bits) for c in candidates] == [("0", 4), ("0", 8), ("2", 4), ("2", 8), ("4", 8)]
    with pytest.raises(ValueError, match=r"No candidate is left for the group '4': the rules allow \[8\] bits"):
        nearest_candidates(found, bits=[3])
    with pytest.raises(ValueError, match="names nobody, which is no group"):
        make_candidates(found, schemes={"nobody": []})
    with pytest.raises(ValueError, match="offered twice"):
        make_candidates(found, schemes=[WeightScheme(8), WeightScheme(8)])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_nearest_rounding_clips_by_squared_error(bits):
    """One weight far out must not take the levels of all others, and nothing is lost where none is far out."""
    torch.manual_seed(0)
    rows = torch.randn(6, 64).double()
    rows[:3, 0] = 8.0
    for scheme in offered_schemes([bits], rounding="nearest"):
        assert scheme.clip == "mse"
        errors = [
            (quantize_rows(rows, each).dequantize(torch.float64) - rows).square().sum(1)
            for each in (scheme, replace(scheme, clip="absmax"))
        ]
        assert (errors[0] <= errors[1]).all()
        if bits == 4:
            assert (errors[0][:3] < errors[1][:3]).all()


def test_wide_linear_layers_are_offered_blocks_beside_channels_at_the_cost_of_their_scales():
    layers = {
        "128": nn.Linear(256, 4),
        "64": nn.Linear(576, 4),
        "32": nn.Linear(288, 4),
        "odd": nn.Linear(270, 4),
        "narrow": nn.Linear(128, 4),
        "conv": nn.Conv2d(256, 4, 1),
        "lookup": nn.Embedding(5, 256),
        "attention": nn.MultiheadAttention(256, 2),
        "tied": nn.Embedding(4, 256),
    }
    model = nn.ModuleDict({f"to {name}": layer for name, layer in layers.items()})
    model["head"] = nn.Linear(256, 4, bias=False)
    model["head"].weight = model["to tied"].weight
    groups = find_groups(model)
    blocks = {group.name: group.block for group in groups if group.block is not None}
    attention = {f"to attention.{name}": 128 for name in ("in_proj_weight", "out_proj")}
    assert blocks == {"to 128": 128, "to 64": 64, "to 32": 32, **attention, "to tied": 128}
    found = {
        (c.group, c.scheme.weight.granularity): c.stored_bits
        for c in make_candidates(groups, [3], grids=["half", "asymmetric"])
        if c.scheme.weight.grid == "asymmetric"
    }
    assert found["to 64", "channel"] == 3 * 4 * 576 + 4 * (16 + 8)
    assert found["to 64", 64] == 3 * 4 * 576 + 9 * 4 * (16 + 8)
    assert ("to odd", "channel") in found
    assert {shared for name, shared in found if name not in blocks} == {"channel"}
    every = make_candidates(groups, [3], grids=["half"], granularities=["channel"])
    assert {c.scheme.weight.granularity for c in every} == {"channel"}
