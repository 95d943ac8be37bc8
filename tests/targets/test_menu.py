"""What a target leaves of the candidates, at which price, and what it says of a policy that was made for another."""

import pytest
import torch
from helpers.networks import images, mlp
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import pack_model
from lightning_mpq.options import CandidateOptions
from lightning_mpq.targets import OnnxRuntime, Torch, export_for, offer, target_named
from lightning_mpq.targets.menu import nearest, refuse_policy


class Npu(mpq.Target):
    """4 or 8 bits without zero points, convolutions of one width in and out, nothing but these and products."""

    name = "npu"

    def why_not(self, layer, scheme):
        if not isinstance(layer, (nn.Conv2d, nn.Linear)):
            return "it has convolutions and products only"
        if scheme.bits not in (4, 8) or scheme.grid != "symmetric":
            return "it computes with 4 or 8 bits on the symmetric grid"
        return None

    def ties(self, model):
        return [[name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]]

    def stored_bits(self, layer, scheme):
        return 2 * super().stored_bits(layer, scheme)


def two_convolutions():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3), nn.Bilinear(3, 3, 2))


def test_a_menu_of_ones_own_restricts_ties_and_prices():
    groups, candidates = offer(Npu(), two_convolutions(), CandidateOptions())
    assert [group.layers for group in groups] == [("0", "1"), ("3",)]
    assert groups.left_in_float == {"4": "npu cannot hold it: it has convolutions and products only"}
    assert groups.float_bytes == 4 * (4 + 4 + 3 + 2 * 9 + 2)  # biases, and all of the bilinear layer
    offered = {(c.group, c.scheme.bits, c.scheme.weight.grid) for c in candidates}
    assert offered == {(group, bits, "symmetric") for group in ("0", "3") for bits in (4, 8)}
    assert [c.stored_bits for c in candidates] == [2 * g.stored_bits(c.scheme) for g in groups for c in candidates
                                                   if c.group == g.name]  # fmt: skip


def test_our_own_target_offers_what_it_always_did():
    options = CandidateOptions()
    groups, candidates = offer(Torch(), two_convolutions(), options)
    assert candidates == options.candidates(mpq.find_groups(two_convolutions()))
    assert len(groups) == 4


def test_widths_that_onnx_holds_in_wider_ones_are_left_out_unless_they_are_all_there_is():
    net = mlp(6, 8, 3)
    _, candidates = offer(OnnxRuntime(), net, CandidateOptions())
    of_first = {(c.scheme.bits, c.scheme.weight.grid) for c in candidates if c.group == "0"}
    assert of_first == {(b, grid) for b in (2, 4) for grid in ("symmetric", "asymmetric")} | {(7, "symmetric")}
    assert {c.scheme.bits for c in candidates if c.group == "2"} == {4, 7}  # 3 rows: INT2 is computed wrongly
    _, three = offer(OnnxRuntime(), net, CandidateOptions(bits=[3], grids=["symmetric"]))
    _, four = offer(OnnxRuntime(), net, CandidateOptions(bits=[4], grids=["symmetric"]))
    assert [c.stored_bits for c in three] == [c.stored_bits for c in four]


def symmetric_widths(net, name, target=None, **options):
    _, candidates = offer(target or OnnxRuntime(), net, CandidateOptions(**options))
    own = [c.scheme for c in candidates if c.group == name and ("inputs" not in options or c.scheme.quantized_input)]
    return {scheme.bits for scheme in own if scheme.weight.grid == "symmetric"}


def test_onnxruntime_is_offered_seven_bits_in_the_place_of_eight_where_eight_by_eight_is_slow():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 40))
    for product in ("0", "4"):
        assert max(symmetric_widths(net, product, inputs=[8])) == 7
        assert max(symmetric_widths(net, product, inputs=[7])) == 8  # 127 * 128 is small enough
        assert symmetric_widths(net, product, inputs=[8], bits=[4, 8]) == {4, 8}  # none of one bit less
    assert max(symmetric_widths(net, "2", inputs=[8])) == 8  # in float by any width
    assert max(symmetric_widths(net, "4", inputs=[8], granularities=[32])) == 8
    assert max(symmetric_widths(net, "0")) == 8  # inputs in float
    assert max(symmetric_widths(net, "4", granularities=["channel"])) == 7  # tokens are rounded to 8 bits
    assert max(symmetric_widths(net, "4", OnnxRuntime(integer_products=False), granularities=["channel"])) == 8


def test_rules_against_the_menu_are_refused_with_the_nearest_that_fits():
    options = CandidateOptions(fixed_bits={"3": 3})
    with pytest.raises(
        ValueError, match=r"npu cannot hold .* group '3', such as 3-bit .* could hold 4-bit symmetric/c"
    ):
        offer(Npu(), two_convolutions(), options)
    with pytest.raises(ValueError, match="has no layer to quantize .* 4: npu cannot hold it"):
        offer(Npu(), two_convolutions(), CandidateOptions(keep_float=["0", "1", "3"]))


def test_a_policy_made_for_something_else_names_layers_and_the_nearest_schemes(tmp_path):
    net = two_convolutions().eval()
    schemes = {"0": mpq.WeightScheme(4), "1": mpq.WeightScheme(8), "3": mpq.WeightScheme(5, grid="half")}
    said = (
        r"does not fit the target 'npu': '3' \(5-bit half/channel\): it computes with 4 or 8 bits on the symmetric "
        r"grid; nearest: 4-bit symmetric/channel; these must agree: '0' 4-bit symmetric/channel, '1' 8-bit"
    )
    with pytest.raises(ValueError, match=said):
        refuse_policy(Npu(), net, mpq.BitPolicy(schemes))
    pack_model(net, mpq.BitPolicy(schemes))
    with pytest.raises(ValueError, match=said):
        export_for(Npu(), net, tmp_path / "model", images(2)[0])
    assert not list(tmp_path.iterdir())


def test_the_nearest_scheme_is_wider_where_both_are_as_far():
    layer = nn.Linear(64, 4)
    assert nearest(Npu(), [layer], mpq.WeightScheme(6)) == mpq.WeightScheme(8)
    assert nearest(Npu(), [layer], mpq.WeightScheme(5, 32)) == mpq.WeightScheme(4, 32)
    assert nearest(Npu(), [nn.Bilinear(2, 2, 2)], mpq.WeightScheme(4)) is None


def test_a_target_without_a_file_says_what_is_missing(tmp_path):
    net = mlp(6, 8, 3)
    pack_model(net, mpq.BitPolicy({"0": mpq.WeightScheme(4)}))
    with pytest.raises(TypeError, match="not how a file is written: define write"):
        export_for(Npu(), net, tmp_path / "model", torch.randn(2, 6))


def test_names_of_targets():
    own = Npu()
    assert target_named(own) is own
    assert isinstance(target_named("onnxruntime"), OnnxRuntime)
    with pytest.raises(ValueError, match="target must be one of 'torch', 'onnxruntime'.*, got 'tensorrt'"):
        target_named("tensorrt")
    with pytest.raises(TypeError, match="a name or an instance of a subclass of Target"):
        target_named(Npu)


class Pairs(mpq.Target):
    """8 by 8 bits, and 4-bit weights by inputs of 8 bits or in float."""

    name = "pairs"

    def why_not(self, layer, scheme):
        return None if scheme.bits in (4, 8) else "it has weights of 4 or 8 bits"

    def why_not_inputs(self, layer, scheme):
        return None if scheme.bits in (4, 8) else "it has inputs of 4 or 8 bits"

    def why_not_pair(self, layer, weight, inputs):
        return (
            "it multiplies inputs of 4 bits by weights of 8 bits only" if (weight.bits, inputs.bits) == (4, 4) else None
        )


def test_pairs_of_weights_and_inputs_that_a_runtime_does_not_compute_are_not_offered_and_refused():
    model = mlp(6, 3)
    wanted = CandidateOptions(bits=(3, 4, 8), inputs=(8, 6, 4, "float"), grids=("symmetric",))
    _, candidates = offer(Pairs(), model, wanted)
    assert {(each.scheme.bits, each.scheme.input_bits) for each in candidates} == {
        (4, 8), (4, None), (8, 8), (8, 4), (8, None),
    }  # fmt: skip
    pair = mpq.LayerScheme(mpq.WeightScheme(4), mpq.InputScheme(4))
    with pytest.raises(ValueError, match="4-bit inputs.: it multiplies inputs of 4 bits by weights of 8 bits only"):
        refuse_policy(Pairs(), model, mpq.BitPolicy({"0": pair}))
