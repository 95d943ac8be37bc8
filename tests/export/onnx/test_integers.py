"""Layers with quantized inputs: onnxruntime multiplies integers, and computes what the packed model computes."""

import onnx
import onnxruntime
import pytest
import torch
from helpers.networks import mlp, vectors
from torch import nn

from lightning_mpq import export_onnx, quantize
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import InputScheme, LayerScheme, WeightScheme

pytest.importorskip("onnxscript")
EIGHT = InputScheme(8)


def optimized(path, tmp_path) -> list[str]:
    """Return the operations that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def quantized(model: nn.Module, data: list[torch.Tensor], weight: WeightScheme, inputs: InputScheme, *layers: str):
    return quantize(model, BitPolicy({layer: LayerScheme(weight, inputs) for layer in layers}), data)


class Small(nn.Module):
    """Convolutions with and without BatchNorm, bias, groups and padding; one input read twice; a Linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, stride=2, groups=2, padding=1)
        self.side = nn.Conv2d(4, 4, 1, stride=2)
        self.last = nn.Linear(4, 3)
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        nn.init.uniform_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last((self.grouped(x) + self.side(x)).mean((2, 3)))


@pytest.mark.parametrize("grid", ["symmetric", "asymmetric", "half"])
@pytest.mark.parametrize(
    ("bits", "inputs"), [(8, EIGHT), (4, EIGHT), (6, InputScheme(5)), (4, InputScheme(8, symmetric=True))]
)
def test_computes_what_the_packed_model_computes(grid, bits, inputs, tmp_path):
    data = list(torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(1)).split(16))
    names = ("first", "grouped", "side", "last")
    model = quantized(Small().eval(), data, WeightScheme(bits, grid=grid), inputs, *names)
    export = export_onnx(model, tmp_path / "model.onnx", data[0])
    session = onnxruntime.InferenceSession(export.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data[1].numpy()})
    expected = model(data[1]).detach()
    difference = (torch.from_numpy(found) - expected).abs()
    assert (
        float(difference.median()) < 1e-6
    )  # biases in integers, and sums in another order, move a code here and there
    assert float(difference.mean()) < 2.0**-inputs.bits * float(expected.abs().mean())
    operations = optimized(export.path, tmp_path)
    if bits < 8 or grid == "symmetric":
        assert export.integers == 4
        assert not {"Conv", "FusedConv", "BatchNormalization", "MatMul", "Gemm"} & set(operations)


def test_no_float_convolution_is_left_in_a_resnet(tmp_path):
    torch.manual_seed(0)
    model, data = ResNet(8).eval(), [torch.randn(8, 1, 8, 8)]
    names = [name for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    model = quantized(model, data, WeightScheme(8), EIGHT, *names)
    export = export_onnx(model, tmp_path / "resnet.onnx", data[0])
    assert export.integers == len(names)
    operations = optimized(export.path, tmp_path)
    assert not {"Conv", "FusedConv", "BatchNormalization", "ConvInteger", "Relu"} & set(operations)
    graph = onnx.load(export.path).graph
    read = {name for node in graph.node for name in node.input}
    assert {stored.name for stored in graph.initializer} <= read  # nothing of BatchNorm is left in the file
    assert operations.count("QLinearConv") == len(names) - 1
    assert operations.count("QLinearAdd") == 3
    assert operations.count("QuantizeLinear") <= 2  # the image, and what the Linear layer reads


class Attention(nn.Module):
    """Two heads, as written by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        probabilities = (queries @ keys.transpose(-1, -2) / 2).softmax(-1)
        return self.out((probabilities @ values).transpose(1, 2).flatten(2))


def test_products_of_attention_run_in_integers_where_a_policy_names_them(tmp_path):
    data = [torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    layers = dict.fromkeys(("project", "out"), LayerScheme(WeightScheme(8), EIGHT))
    policy = BitPolicy(layers, operands={"product0": EIGHT, "product1": EIGHT})
    model = quantize(Attention().eval(), policy, data)
    export = export_onnx(model, tmp_path / "attention.onnx", data[0])
    assert export.integers == 4
    assert "MatMul" not in optimized(export.path, tmp_path)
    session = onnxruntime.InferenceSession(export.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data[1].numpy()})
    expected = model(data[1]).detach()
    assert float((torch.from_numpy(found) - expected).abs().median()) < 1e-6


class Chain(nn.Module):
    """Bounds and moves between convolutions: ReLU6 in and out of the range, pooling, both ends of codes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.ReLU6(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.Hardtanh(-0.1, 0.2),
            nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
        )  # fmt: skip
        with torch.no_grad():  # channels that are nothing but an offset, of another sign, and of billions of tiny steps
            self.layers[6].weight.copy_(torch.tensor([0.0, -1.5, 1e-12, 1.0, -2e-5]))
            self.layers[6].bias.copy_(torch.tensor([1.0, 0.5, 2.0, 0.0, 2.0]))
            self.layers[3].weight[2] = 0  # one without a step, and one whose step is no number of 16 bits
            self.layers[3].weight[3] *= 1e-12
            self.layers[3].bias.copy_(torch.tensor([0.0, 0.1, 0.15, -0.05]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("inputs", [EIGHT, InputScheme(5), InputScheme(8, symmetric=True)], ids=str)
def test_what_lies_between_convolutions_is_fused(inputs, tmp_path):
    data = list(torch.randn(32, 2, 12, 12, generator=torch.Generator().manual_seed(1)).split(16))
    names = [f"layers.{index}" for index in (0, 3, 5, 10)]
    model = quantized(Chain().eval(), data, WeightScheme(6), inputs, *names)
    export = export_onnx(model, tmp_path / "model.onnx", data[0])
    operations = optimized(export.path, tmp_path)
    assert operations.count("QLinearConv") == 3
    assert not {"Conv", "FusedConv", "BatchNormalization", "ConvInteger", "Relu"} & set(operations)
    graph = onnx.load(export.path).graph
    read = {name for node in graph.node for name in node.input}
    assert {stored.name for stored in graph.initializer} <= read  # nothing of BatchNorm is left in the file
    session = onnxruntime.InferenceSession(export.path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: data[1].numpy()})
    expected = model(data[1]).detach()
    assert float((torch.from_numpy(found) - expected).abs().mean()) < 5e-3 * float(expected.abs().mean())


class Copied(nn.Module):
    """A residual block whose tensors are copied on the way: padded by nothing, cloned, in another layout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.second = nn.Sequential(nn.ZeroPad2d(0), nn.Conv2d(6, 6, 1), nn.ReLU())
        self.third = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = self.third(self.second(x).contiguous(memory_format=torch.channels_last))
        return self.last((y + x.clone()).relu()).flatten(1)


def test_copies_of_a_tensor_are_quantized_once_and_all_convolutions_fused(tmp_path):
    data = list(torch.randn(32, 2, 8, 8, generator=torch.Generator().manual_seed(1)).split(16))
    model = quantized(Copied().eval(), data, WeightScheme(7), EIGHT, "first.0", "second.1", "third", "last")
    assert model.get_buffer("second.1.input_scale") == model.operand_scale[1]
    export = export_onnx(model, tmp_path / "model.onnx", data[0])
    operations = optimized(export.path, tmp_path)
    assert operations.count("QLinearConv") == 3
    assert not {"Conv", "FusedConv"} & set(operations)
    assert operations.count("ConvInteger") == 1  # the last, whose outputs are floats


def test_what_has_no_integer_operation_gets_rounded_inputs(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    data = [torch.randn(16, 2, 3, 3)]
    policy = BitPolicy({"0": LayerScheme(WeightScheme(8), EIGHT), "3": LayerScheme(WeightScheme(4, 16), EIGHT)})
    export = export_onnx(quantize(model, policy, data), tmp_path / "model.onnx", data[0])
    assert export.integers == 0
    assert export.error < 0.05


def test_what_cannot_be_carried_is_refused_by_name(tmp_path):
    tokens = quantized(mlp(6, 3), vectors(8), WeightScheme(8), InputScheme(8, "token"), "0")
    with pytest.raises(ValueError, match="layer '0' .*8-bit inputs/token.: a range for each token"):
        export_onnx(tokens, tmp_path / "out.onnx", vectors(2)[0])
    tied = mlp(6, 6, 6)
    tied[2].weight = tied[0].weight
    both = BitPolicy({"both": LayerScheme(WeightScheme(8), EIGHT)}, {"both": ("0", "2")})
    with pytest.raises(ValueError, match="layer '2' .*: it shares its weight with '0'"):
        export_onnx(quantize(tied, both, vectors(8)), tmp_path / "out.onnx", vectors(2)[0])
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_openvino_multiplies_the_same_integers(tmp_path):
    openvino = pytest.importorskip("openvino", reason="needs the extra 'openvino'")
    torch.manual_seed(0)
    x, model = torch.randn(8, 1, 12, 12), ResNet(8, widths=(8, 8, 16)).eval()
    names = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    packed = quantized(model, [x], WeightScheme(7), EIGHT, *names)
    export_onnx(packed, tmp_path / "model.onnx", x[:2])
    compiled = openvino.Core().compile_model(tmp_path / "model.onnx", "CPU")
    said = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    types = [each["runtimePrecision"].astype(str) for each in said if each["layerType"].astype(str) == "Convolution"]
    assert len(types) == len(names)
    assert set(types) <= {"u8", "i8"}
    found, expected = torch.from_numpy(compiled(x.numpy())[0]), packed(x).detach()
    assert float((found - expected).abs().max()) < 0.02 * float(expected.abs().max())  # the code beside, here and there
