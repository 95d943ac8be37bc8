"""What lies beyond the ranges of inputs is counted, value by value."""

import pytest
import torch
from helpers.networks import mlp, vectors

from lightning_mpq import clipped_inputs
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
