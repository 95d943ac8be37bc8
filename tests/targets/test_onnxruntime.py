"""What onnxruntime's file takes where inputs are quantized too."""

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.targets.menu import offer, stored_bytes_in

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = [(grid, bits) for grid in ("half", "symmetric", "asymmetric") for bits in (2, 3, 4, 7, 8)]


def test_bytes_that_are_counted_for_layers_with_quantized_inputs_are_those_in_the_file(tmp_path):
    """Half a scale is not added to integers: levels on the half grid take the next type then, in convolutions too."""
    for package in mpq.targets.OnnxRuntime.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 4, 1) for _ in KINDS]
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), *layers, nn.Flatten(), nn.Linear(36, 4)).eval()
    schemes = {f"{place}": mpq.WeightScheme(bits, grid=grid) for place, (grid, bits) in enumerate(KINDS, start=1)}
    schemes |= {"0": mpq.WeightScheme(4, grid="half"), f"{len(model) - 1}": mpq.WeightScheme(4, grid="half")}
    policy = mpq.BitPolicy({name: mpq.LayerScheme(scheme, mpq.InputScheme(8)) for name, scheme in schemes.items()})
    batches = torch.randn(8, 3, 2, 2).split(4)
    target = mpq.targets.OnnxRuntime()
    groups, _ = offer(target, model, mpq.CandidateOptions(inputs=[8]))
    counted = stored_bytes_in(target, model, groups, policy)
    packed = mpq.quantize(model, policy, batches)
    mpq.export_for(target, packed, tmp_path / "net.onnx", batches[0], verify=False)
    found = sum(layer.bytes for layer in target.read(tmp_path / "net.onnx").values())
    assert counted == found + len(schemes) * mpq.InputScheme(8).stored_bits // 8
