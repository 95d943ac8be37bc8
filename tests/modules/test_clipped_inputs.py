"""What lies beyond the ranges of inputs is counted, value by value."""

import pytest
import torch
from helpers.networks import mlp, vectors
from helpers.padded_tokens import AttendingTagger, one_by_one, padded, tagger

from lightning_mpq import RepairOptions, clipped_inputs, quantize
from lightning_mpq.inputs.quantizer import range_between
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme


def test_counts_the_values_beyond_the_range():
    model, batches = mlp(6, 8, 3), vectors(20, 11)
    policy = BitPolicy({"0": LayerScheme(WeightScheme(4), InputScheme(8)), "2": WeightScheme(4)})
    with pytest.raises(ValueError, match="no packed layer that stores a range"):
        clipped_inputs(model, batches)
    found = range_between(-1.0, 0.5, InputScheme(8))
    pack_model(model, policy, ranges={"0": found})
    x = torch.cat(batches)
    rounded = model[0].quantized_input(x)
    beyond = (rounded - x).abs() > found.scale * 0.5001
    assert clipped_inputs(model, batches) == {"0": pytest.approx(float(beyond.double().mean()))}


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_that_are_hidden_do_not_count(side):
    """Neither where inputs of layers are clipped nor where what products of attention read is."""
    full = InputScheme(8, clip="absmax")
    model = tagger()
    policy = BitPolicy({name: LayerScheme(WeightScheme(8), full) for name in ("inner", "flat", "head")})
    pack_model(model, policy, ranges=dict.fromkeys(policy, range_between(-0.3, 0.4, full)))
    assert clipped_inputs(model, [padded(side)]) == pytest.approx(clipped_inputs(model, one_by_one()))

    torch.manual_seed(0)
    attending = AttendingTagger().eval()
    read = [f"product{number}" for number in range(2)]
    policy = BitPolicy({"both": WeightScheme(8), "queries": WeightScheme(8)}, operands=dict.fromkeys(read, full))
    packed = quantize(attending, policy, [padded(side)], repair=RepairOptions(biases=False))
    found = clipped_inputs(packed, [padded(side)])
    assert all(found[operand] == 0 for operand in ("product0:0", "product0:1", "product1:1"))
    assert max(clipped_inputs(packed, [{**padded(side), "attention_mask": torch.ones(3, 5)}]).values()) > 0
