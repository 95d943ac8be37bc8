"""Exports of weights alone do not drop what a policy says of inputs."""

import pytest
from helpers.networks import mlp

from lightning_mpq import export_compressed_tensors, torchao_config
from lightning_mpq.inputs.quantizer import InputRange
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

POLICY = BitPolicy({"0": LayerScheme(WeightScheme(4), InputScheme(8))})


def test_quantized_inputs_are_refused_by_name(tmp_path):
    model = mlp(6, 3)
    pack_model(model, POLICY, ranges={"0": InputRange(0.5, 0)})
    said = "carries weights only here, and the layer '0' has 8-bit inputs"
    for package, export in (
        ("torchao", lambda: torchao_config(POLICY)),
        ("compressed_tensors", lambda: export_compressed_tensors(model, tmp_path / "out")),
    ):
        pytest.importorskip(package)
        with pytest.raises(ValueError, match=said):
            export()
    assert not list(tmp_path.iterdir())
