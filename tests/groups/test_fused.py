"""Layers that stand side by side share a decision on request, by the names of a runtime or by others."""

import pytest
from torch import nn

from lightning_mpq import CandidateOptions, find_groups
from lightning_mpq.targets import target_named


def block() -> nn.ModuleDict:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    return nn.ModuleDict({name: nn.Linear(4, 2 if name == "k_proj" else 4) for name in names})


def layers_of(model, **rules):
    return [group.layers for group in find_groups(model, **rules)]


def test_each_block_ties_its_own():
    model = nn.ModuleList([block(), block()])
    found = layers_of(model, fuse=[("q_proj", "k_proj", "v_proj")])
    assert found[:2] == [("0.q_proj", "0.k_proj", "0.v_proj"), ("0.o_proj",)]
    assert ("1.q_proj", "1.k_proj", "1.v_proj") in found
    assert len(found) == 8
    assert layers_of(model, fuse=[("q_proj", "absent", "k_proj")])[0] == ("0.q_proj", "0.k_proj")


def test_names_of_vllm_are_what_its_target_ties():
    model = nn.ModuleList([block(), block()])
    assert sorted(layers_of(model, fuse="vllm")) == sorted(layers_of(model, ties=target_named("vllm").ties(model)))
    assert len(layers_of(model, fuse="vllm")) == 6
    assert [list(names) for names in layers_of(nn.ModuleList([nn.Linear(2, 2)]), fuse="vllm")] == [["0"]]


def test_options_hand_it_on():
    options = CandidateOptions(fuse=[("gate_proj", "up_proj")])
    assert ("gate_proj", "up_proj") in layers_of(block(), **options.rules())


@pytest.mark.parametrize("fuse", ["sglang", ["q_proj", "k_proj"], 3])
def test_what_is_no_list_of_lists_is_refused(fuse):
    with pytest.raises(ValueError, match=r"fuse must be 'vllm' or a list of lists of names"):
        CandidateOptions(fuse=fuse)
    with pytest.raises(ValueError, match="fuse must be 'vllm'"):
        find_groups(block(), fuse=fuse)


def test_names_that_nothing_has_are_refused():
    with pytest.raises(ValueError, match=r"nowhere in ModuleDict do two layers of these names stand in one module"):
        find_groups(block(), fuse=[("wq", "wk")])
