"""Products of integers and integers in ONNX, inputs rounded token by token: what the formula says, for every scheme."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.export.float_twins import float_twins

pytestmark = pytest.mark.filterwarnings("ignore")


class Net(nn.Module):
    """Two products of the same inputs and one of theirs, with and without bias."""

    def __init__(self, columns=24, rows=16):
        super().__init__()
        self.left, self.right = nn.Linear(columns, rows), nn.Linear(columns, rows, bias=False)
        self.out = nn.Linear(rows, 5)

    def forward(self, tokens):
        return self.out(torch.tanh(self.left(tokens)) * self.right(tokens))


def packed(scheme, net=None):
    torch.manual_seed(0)
    net = Net() if net is None else net
    return mpq.quantize(net, mpq.BitPolicy({group.name: scheme for group in mpq.find_groups(net)}))


def written(net, path, inputs, **options):
    found = mpq.export_onnx(net, path, inputs, standard=False, integer_products=True, **options)
    return found, [node.op_type for node in onnx.load(path).graph.node]


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: given.numpy() for name, given in zip(names, inputs, strict=True)})[0]


def with_rounded_tokens(net, inputs):
    """Compute in float64 what a packed network does with tokens of 127 steps either side of zero."""

    def rounded(layer, arguments):
        (x,) = arguments
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        return ((x / step).round() * step,)

    with float_twins(net), torch.no_grad():
        exact = Net().double()
        exact.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    for layer in exact.children():
        layer.register_forward_pre_hook(rounded)
    with torch.no_grad():
        return exact(inputs.double()).numpy()


SCHEMES = [
    *(mpq.WeightScheme(bits, grid=grid) for bits in (2, 3, 4, 6, 7, 8) for grid in ("symmetric", "asymmetric")),
    mpq.WeightScheme(3, grid="half"),
    mpq.WeightScheme(7, grid="half"),
    mpq.WeightScheme(4, granularity="tensor"),
    mpq.WeightScheme(8, granularity="tensor", grid="asymmetric"),
    mpq.WeightScheme(5, scale_dtype="float16"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_file_computes_the_formula(tmp_path, scheme):
    net, inputs = packed(scheme), torch.randn(3, 7, 24) * torch.logspace(-3, 3, 7)[:, None]
    found, operations = written(net, tmp_path / "net.onnx", inputs)
    assert operations.count("MatMulIntegerToFloat") == found.integers == 3
    assert operations.count("QuantizeLinear") == 2  # inputs that two products read are rounded once
    assert "DequantizeLinear" not in operations
    assert found.error < 1e-6
    wanted = with_rounded_tokens(net, inputs)
    assert np.abs(run(tmp_path / "net.onnx", inputs) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_no_token_depends_on_others(tmp_path):
    net, inputs = packed(mpq.WeightScheme(8)), torch.randn(4, 7, 24)
    written(net, tmp_path / "net.onnx", inputs)
    whole = run(tmp_path / "net.onnx", inputs)
    inputs[1:] *= 1000
    inputs[0, 3:] *= 1000
    assert np.array_equal(run(tmp_path / "net.onnx", inputs)[0, :3], whole[0, :3])
    assert np.isfinite(run(tmp_path / "net.onnx", torch.zeros(1, 7, 24))).all()


def test_a_matrix_of_inputs_is_rounded_by_rows(tmp_path):
    net, inputs = packed(mpq.WeightScheme(6)), torch.randn(9, 24)
    _, operations = written(net, tmp_path / "net.onnx", inputs)
    assert operations.count("MatMulIntegerToFloat") == 3
    wanted = with_rounded_tokens(net, inputs)
    assert np.abs(run(tmp_path / "net.onnx", inputs) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_the_largest_products_do_not_saturate(tmp_path):
    """Two products of 8 by 8 bits do not fit 16 bits, in which processors without VNNI add them up."""
    for bits in (7, 8):
        net = nn.Sequential(nn.Linear(64, 8, bias=False))
        nn.init.constant_(net[0].weight, -1.0)  # the largest level is a negative one
        packed(mpq.WeightScheme(bits, clip="absmax"), net)
        with torch.no_grad():
            wanted = net(torch.ones(2, 64)).numpy()
        written(net, tmp_path / "net.onnx", torch.ones(2, 64))
        assert np.abs(run(tmp_path / "net.onnx", torch.ones(2, 64)) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_blocks_and_convolutions_and_rounded_inputs_stay_as_they_are(tmp_path):
    net = packed(mpq.WeightScheme(4, granularity=16), Net(32, 32))
    found, operations = written(net, tmp_path / "net.onnx", torch.randn(2, 7, 32))
    assert (found.integers, found.fused) == (0, 3)
    assert "MatMulIntegerToFloat" not in operations
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    scheme = mpq.LayerScheme(mpq.WeightScheme(8, grid="half"), mpq.InputScheme(8))
    images = torch.rand(4, 3, 4, 4)
    groups = mpq.find_groups(net)
    mpq.quantize(net, mpq.BitPolicy({group.name: scheme for group in groups}), [images])
    _, operations = written(net, tmp_path / "conv.onnx", images)
    assert "MatMulIntegerToFloat" not in operations


def test_a_weight_of_two_products_is_stored_once(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    net, inputs = packed(mpq.WeightScheme(4), Twice()), torch.randn(2, 3, 16)
    found, operations = written(net, tmp_path / "net.onnx", inputs)
    assert operations.count("MatMulIntegerToFloat") == found.integers == 2
    assert sum(len(t.raw_data) == 128 for t in onnx.load(tmp_path / "net.onnx").graph.initializer) == 1


def test_half_precision_computes_in_half_precision(tmp_path):
    net, inputs = packed(mpq.WeightScheme(8), Net().half()), torch.randn(2, 3, 24).half()
    _, operations = written(net, tmp_path / "net.onnx", inputs, tolerance=0.01)
    assert "MatMulIntegerToFloat" not in operations


def test_the_standard_has_no_such_operation(tmp_path):
    with pytest.raises(ValueError, match="pass standard=False"):
        mpq.export_onnx(packed(mpq.WeightScheme(8)), tmp_path / "net.onnx", torch.randn(2, 24), integer_products=True)


def test_the_target_writes_them_unless_told_not_to_and_verifies(tmp_path):
    net, inputs = packed(mpq.WeightScheme(8)), torch.randn(2, 7, 24)
    found = mpq.export_for("onnxruntime", net, tmp_path / "net.onnx", inputs)
    assert 0 < found.error < 0.1
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node}
    target = mpq.targets.OnnxRuntime(integer_products=False)
    mpq.export_for(target, net, tmp_path / "plain.onnx", inputs)
    assert "MatMulIntegerToFloat" not in {node.op_type for node in onnx.load(tmp_path / "plain.onnx").graph.node}


def test_quantized_inputs_are_verified_as_exactly_as_they_were_written(tmp_path):
    torch.manual_seed(0)
    net, images = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), torch.rand(4, 3, 12, 12)
    scheme = mpq.LayerScheme(mpq.WeightScheme(6), mpq.InputScheme(8))
    mpq.quantize(net, mpq.BitPolicy({group.name: scheme for group in mpq.find_groups(net)}), [images])
    path = tmp_path / "net.onnx"
    mpq.export_for("onnxruntime", net, path, images)
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert said["lightning_mpq.tolerance"] == "0.05"
    assert mpq.verify(path).error <= 0.05


def types_of_weights(path):
    """Return the types of the weights that are multiplied, as the runtime folds them."""
    content = onnx.load(path)
    kinds = {}
    for node in content.graph.node:
        if node.op_type == "Cast":
            kinds[node.output[0]] = next(each.i for each in node.attribute if each.name == "to")
    return {kinds[node.input[1]] for node in content.graph.node if node.op_type == "MatMulIntegerToFloat"}


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 6])
def test_weights_have_a_sign_wherever_that_is_exact_on_any_processor(tmp_path, bits, grid):
    """onnxruntime multiplies by unsigned ones no faster than by floats."""
    net = packed(mpq.WeightScheme(bits, grid=grid))
    written(net, tmp_path / "net.onnx", torch.randn(3, 24))
    assert types_of_weights(tmp_path / "net.onnx") == {onnx.TensorProto.INT8}
