"""Which layers are found, which decisions they share, and what the rules leave them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


def nested() -> nn.Module:
    """A convolution in groups inside of a submodule, so that names have dots."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()),
        nn.Linear(4, 3),
    )


class TiedLanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_each_layer_is_a_group_and_the_rest_is_counted_as_float():
    found = find_groups(nested())
    assert [(g.name, g.layers, g.weight_count) for g in found] == [
        ("0", ("0",), 72),
        ("2.0", ("2.0",), 72),
        ("3", ("3",), 12),
    ]
    assert found.float_bytes == 4 * (4 + 4 + 3) + 4 * (4 * 4) + 8  # biases; BatchNorm; its int64 counter
    assert found[1].stored_bits(WeightScheme(3)) == 72 * 3 + 4 * 16


@pytest.mark.parametrize("pattern", ["2.*", ["0", "2.0"], "re:0|2\\.0"])
def test_user_groups_by_glob_and_regex(pattern):
    found = find_groups(nested(), {"features": pattern})
    names = {g.name: g.layers for g in found}
    assert names["features"] == (("2.0",) if pattern == "2.*" else ("0", "2.0"))
    assert sum(len(g.layers) for g in found) == 3


def test_tied_weights_share_a_group_and_count_once():
    found = find_groups(TiedLanguageModel())
    assert [(g.name, g.layers, g.weight_count) for g in found] == [
        ("embed", ("embed", "head"), 28),
        ("inner", ("inner",), 16),
    ]
    assert {g.name for g in find_groups(TiedLanguageModel(), {"io": "head"})} == {"io", "inner"}
    with pytest.raises(ValueError, match="embed, head share a weight but fall in"):
        find_groups(TiedLanguageModel(), {"a": "embed", "b": "head"})


def test_rules_on_bits():
    found = find_groups(nested(), min_bits={"*": 3}, max_bits={"0": 5}, fixed_bits={"3": 8}, keep_float=["2.0"])
    assert {g.name: g.bits for g in found} == {"0": (3, 4, 5), "3": (8,)}
    assert found.left_in_float == {"2.0": "kept in float by the pattern '2.0'"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"groups": {"g": "conv*"}}, r"groups\['g'\]: the pattern 'conv\*' matches no layer. Layers: 0, 2.0, 3"),
        ({"groups": {"g": "re:("}}, "not a regular expression"),
        ({"groups": {"g": "0", "h": "*"}}, "'0' falls in the groups 'g' and 'h'"),
        ({"groups": {"3": "0"}}, "named like a layer outside of it"),
        ({"keep_float": ["x"]}, "keep_float: the pattern 'x' matches no layer"),
        ({"min_bits": {"0": 6}, "max_bits": {"0": 4}}, r"max_bits\['0'\] = 4 contradicts"),
        ({"fixed_bits": {"0": 9}}, "must be an integer from 2 to 8, got 9"),
        ({"groups": {"g": "*"}, "fixed_bits": {"0": 3, "3": 4}}, "leave the group 'g' no width"),
        ({"keep_float": ["*"]}, "has no layer to quantize.*kept in float"),
    ],
)
def test_rules_that_cannot_hold_are_sentences(arguments, said):
    with pytest.raises(ValueError, match=said):
        find_groups(nested(), **arguments)


def test_what_cannot_be_quantized_is_named():
    class Strange(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs @ self.weight.T.abs()

    model = nn.ModuleDict(
        {
            "plain": nn.Linear(2, 2),
            "bag": nn.EmbeddingBag(4, 2),
            "strange": Strange(2, 2),
            "normed": parametrizations.weight_norm(nn.Linear(2, 2)),
        }
    )
    found = find_groups(model)
    assert [g.name for g in found] == ["plain"]
    assert "type EmbeddingBag" in found.left_in_float["bag"]
    assert "register_layer" in found.left_in_float["bag"]
    assert "type Strange" in found.left_in_float["strange"]
    assert "parametrization" in found.left_in_float["normed"]


def test_weights_are_found_by_the_name_of_their_layer_or_their_own():
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "across": nn.MultiheadAttention(4, 2, kdim=3, vdim=2),
            "lstm": nn.LSTM(2, 3, bidirectional=True),
            "cell": nn.GRUCell(3, 2),
        }
    )
    found = find_groups(model, {"lstm": "lstm.*"}, keep_float=["across.out_proj"], max_bits={"attention.*": 4})
    shapes = {group.name: group.shapes for group in found}
    assert shapes == {
        "attention.in_proj_weight": ((12, 4),),
        "attention.out_proj": ((4, 4),),
        "across.q_proj_weight": ((4, 4),),
        "across.k_proj_weight": ((4, 3),),
        "across.v_proj_weight": ((4, 2),),
        "lstm": ((12, 2), (12, 3), (12, 2), (12, 3)),
        "cell.weight_ih": ((6, 3),),
        "cell.weight_hh": ((6, 2),),
    }
    assert found[0].bits == (2, 3, 4)
    left = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 1 or n == "across.out_proj.weight")
    assert found.float_bytes == 4 * left
    assert sum(group.weight_count for group in found) == sum(p.numel() for p in model.parameters()) - left


def test_a_packed_model_says_so():
    model = nn.Sequential(nn.Linear(2, 2))
    pack_model(model, BitPolicy({"0": WeightScheme(4)}))
    with pytest.raises(ValueError, match="0: it is packed already"):
        find_groups(model)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="ReLU has no layer to quantize"):
        find_groups(nn.ReLU())


class WithTeacher(nn.Module):
    """A network with others beside it that its outputs are not computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.teacher = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 32), nn.Linear(32, 3))

    def forward(self, x):
        return self.body(x)


def test_weights_that_the_model_does_not_use_stay_in_float_and_count_in_no_budget():
    everything = find_groups(WithTeacher())
    assert [group.name for group in everything] == ["body", "teacher.0", "teacher.1"]
    rules = {"groups": {"all": "*"}, "max_bits": {"teacher.*": 4}}
    with pytest.warns(UserWarning, match="teacher.0, teacher.1 .* stay in float"):
        found = find_groups(WithTeacher(), batches=[torch.randn(2, 6)], **rules)
    assert [(group.name, group.layers, max(group.bits)) for group in found] == [("all", ("body",), 8)]
    assert found.left_in_float.keys() == {"teacher.0", "teacher.1"}
    assert found.unused_bytes == 4 * (6 * 32 + 32 * 3)
    assert found.float_bytes == everything.float_bytes


def test_weights_that_lie_beside_what_is_calibrated_are_refused_alone():
    batches = Calibration(WithTeacher(), [torch.randn(2, 6)], forward_fn=lambda model, batch: batch)
    with pytest.raises(ValueError, match="no layer to quantize.*body: no output"):
        find_groups(batches.model, batches=batches)


def test_ties_and_refusals_of_a_target_hold_whatever_the_patterns_say():
    found = find_groups(TiedLanguageModel(), ties=[["inner", "head"], ["nowhere"]])
    assert [group.layers for group in found] == [("embed", "inner", "head")]  # the table is tied to the head by itself
    found = find_groups(nested(), groups={"both": ["0", "2.0"]}, ties=[["2.0", "3"]])
    assert [(group.name, group.layers) for group in found] == [("both", ("0", "2.0", "3"))]
    with pytest.raises(ValueError, match=r"Layers 0, 3 must agree for the target but fall in \['a', 'b'\]"):
        find_groups(nested(), groups={"a": "0", "b": "3"}, ties=[["0", "3"]])
    refused = find_groups(nested(), refuse=lambda group: "too small" if group.weight_count < 70 else None)
    assert refused.left_in_float == {"3": "too small"}
    assert refused.float_bytes == find_groups(nested()).float_bytes + 4 * 12
    with pytest.raises(ValueError, match="no layer to quantize .* 0: no; 2.0: no; 3: no"):
        find_groups(nested(), refuse=lambda group: "no")
