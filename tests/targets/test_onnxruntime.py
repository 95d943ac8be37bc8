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


class Recurrent(nn.Module):
    """Layers upon layers, so that each scheme has weights of its own, and a cell."""

    def __init__(self, kind, cell):
        super().__init__()
        self.layers, self.cell = kind(8, 8, num_layers=len(KINDS) // 2, batch_first=True), cell(8, 8)

    def forward(self, x):
        found = self.cell(self.layers(x)[0][:, -1])
        return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize(
    ("kind", "cell"), [(nn.GRU, nn.GRUCell), (nn.LSTM, nn.LSTMCell), (nn.RNN, nn.RNNCell)], ids=["gru", "lstm", "rnn"]
)
def test_bytes_that_are_counted_for_recurrent_layers_are_those_in_the_file(tmp_path, kind, cell):
    """LSTM and GRU read weights in operations of their own; RNN and cells become products."""
    for package in mpq.targets.OnnxRuntime.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    torch.manual_seed(0)
    model, target, inputs = Recurrent(kind, cell).eval(), mpq.targets.OnnxRuntime(), torch.randn(3, 2, 8)
    groups, _ = offer(target, model, mpq.CandidateOptions())
    schemes = [mpq.WeightScheme(bits, grid=grid) for grid, bits in [KINDS[-1], *KINDS]]
    policy = mpq.BitPolicy({group.name: scheme for group, scheme in zip(groups, schemes, strict=True)})
    counted = stored_bytes_in(target, model, groups, policy)
    mpq.export_for(target, mpq.quantize(model, policy), tmp_path / "net.onnx", inputs, verify=False)
    assert counted == sum(layer.bytes for layer in target.read(tmp_path / "net.onnx").values())


class Experts(nn.Module):
    """Every token goes to each expert, through slices of one weight or all of them at once."""

    def __init__(self, at_once):
        super().__init__()
        self.num_experts = len(KINDS)
        shape = (8, 4) if at_once else (4, 8)
        self.weight = nn.Parameter(torch.randn(self.num_experts, *shape))
        self.at_once = at_once

    def forward(self, x):
        if self.at_once:
            return torch.bmm(x.expand(self.num_experts, -1, -1), self.weight).sum(0)
        return sum(nn.functional.linear(x, self.weight[expert]) for expert in range(self.num_experts))


@pytest.mark.parametrize(("grid", "bits"), KINDS)
@pytest.mark.parametrize("at_once", [True, False])
def test_bytes_that_are_counted_for_experts_are_those_in_the_file(tmp_path, grid, bits, at_once):
    """The file multiplies by slices, or by all of a weight of three dimensions: no product as of a Linear layer."""
    for package in mpq.targets.OnnxRuntime.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    torch.manual_seed(0)
    model, target = nn.Sequential(nn.Linear(8, 8), Experts(at_once)).eval(), mpq.targets.OnnxRuntime()
    groups, _ = offer(target, model, mpq.CandidateOptions())
    assert [group.name for group in groups] == ["0", "1.weight"]
    policy = mpq.BitPolicy({group.name: mpq.WeightScheme(bits, grid=grid) for group in groups})
    counted = stored_bytes_in(target, model, groups, policy)
    mpq.export_for(target, mpq.quantize(model, policy), tmp_path / "net.onnx", torch.randn(6, 8))
    assert counted == sum(layer.bytes for layer in target.read(tmp_path / "net.onnx").values())
