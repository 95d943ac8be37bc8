"""Whole networks in onnxruntime: the same numbers as in PyTorch, in a small file, or no file at all."""

import json

import pytest
import torch
from helpers.schemes import packed_in_all_ways
from torch import nn

from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.export.onnx import export_onnx
from lightning_mpq.modules import pack_model, packed_layers, policy_of, stored_bytes
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytestmark = pytest.mark.filterwarnings("ignore")


class Blocks(nn.Module):
    """A table tied to the head, attention, transposed convolutions in groups, and a layer under two names."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(12, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 20, dropout=0.0, batch_first=True)
        self.up = nn.ConvTranspose1d(16, 8, 2, stride=2, groups=2)
        self.mix = nn.Linear(8, 16)
        self.again = self.mix
        self.head = nn.Linear(16, 12)
        self.head.weight = self.table.weight

    def forward(self, indices):
        hidden = self.encoder(self.table(indices))
        hidden = self.mix(self.up(hidden.transpose(1, 2)).transpose(1, 2))
        return self.head(self.again(hidden[..., :8])), hidden.mean(1)


def mobile_block():
    """Depthwise and pointwise convolutions with BatchNorm, of MobileNetV2's kind."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU6(),
        nn.Conv2d(12, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7),
    )  # fmt: skip


CASES = {
    "resnet": (lambda: ResNet(depth=8, widths=(4, 8, 16)), torch.zeros(1, 1, 8, 8), ("channel", 16)),
    "mobile": (mobile_block, torch.zeros(2, 3, 6, 6), ("channel", "tensor", 4)),
    "blocks": (Blocks, torch.zeros(2, 5, dtype=torch.long), ("channel", 16, "tensor")),
}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    """Return a model, its export, and what it computed before on more inputs than the export saw."""
    torch.manual_seed(0)
    make, example, granularity = CASES[request.param]
    model = make()
    shape = (5, *example.shape[1:])
    inputs = torch.randint(0, 12, shape) if example.dtype == torch.long else torch.randn(shape)
    if example.is_floating_point():
        model(torch.randn(8, *example.shape[1:]))  # BatchNorm statistics of its own
    packed_in_all_ways(model, granularity)
    model.train()
    example = torch.randint(0, 12, example.shape) if example.dtype == torch.long else torch.randn(example.shape)
    result = export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx", example)
    return model, result, inputs


def run(path, inputs, level="1"):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [torch.as_tensor(value) for value in session.run(None, {session.get_inputs()[0].name: inputs.numpy()})]


def test_onnxruntime_computes_what_pytorch_does_at_another_batch_size(exported):
    model, result, inputs = exported
    assert model.training
    assert all(module.training for module in model.modules())  # export looked at it in eval mode and put it back
    model.eval()
    expected = model(inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for found, own in zip(run(result.path, inputs), expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)
    model.train()
    assert 0 <= result.error < 1e-5
    assert result.error <= result.default_error < 0.1
    assert 5 not in result.batch_sizes


def test_the_file_holds_integers_and_no_float_weights(exported):
    model, result, _ = exported
    content = onnx.load(result.path)
    assert result.file_bytes == result.path.stat().st_size
    held = {name: layer for name, layer in packed_layers(model).items() if name in result.containers}
    assert held.keys() == packed_layers(model).keys()
    for name, layer in held.items():
        width = int(result.containers[name].lstrip("UINT"))
        assert layer.scheme.bits <= width <= max(4, 2 * layer.scheme.bits)
    integers = {onnx.TensorProto.DataType.Value(name) for name in set(result.containers.values())}
    stored = [tensor for tensor in content.graph.initializer if tensor.name.endswith(".levels")]
    assert {tensor.data_type for tensor in stored} == integers
    assert len(stored) == len({id(layer.packed_codes) for layer in held.values()})  # what is tied is stored once
    floats = sum(len(t.raw_data) for t in content.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert floats <= stored_bytes(model).floating  # biases and norms; scales keep their 16 bits
    assert all(node.domain == "" for node in content.graph.node)
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    assert BitPolicy.from_json(metadata["lightning_mpq.policy"]) == policy_of(model)


def test_products_are_fused_unless_a_weight_is_used_twice(exported):
    model, result, _ = exported
    once = [layer for layer in packed_layers(model).values() if layer.weight.dim() == 2]
    used_twice = ("table", "head", "mix")
    assert result.fused == len(once) - sum(hasattr(model, name) for name in used_twice)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("shape", [(3, 36), (3, 2, 36)], ids=["rows", "sequences"])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_fused_whatever_stands_behind_them(activation, shape, bias, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(36, 32, bias=bias), activation(), nn.Linear(32, 3, bias=bias), activation())
    pack_model(model, BitPolicy({"0": WeightScheme(2), "2": WeightScheme(5)}))
    result = export_onnx(model, tmp_path / "model.onnx", torch.randn(shape), output_names=["scores"])
    assert result.fused == 2
    graph = onnx.load(result.path).graph
    assert [value.name for value in graph.output] == ["scores"]
    more = torch.randn(5, *shape[1:])
    torch.testing.assert_close(run(result.path, more)[0], model(more), rtol=1e-4, atol=1e-5)


def test_two_bits_where_onnxruntime_multiplies_wrongly(tmp_path):
    """Version 1.32 mixes up products from 2 bits whose outputs are no multiple of 4; they are held in 4."""
    torch.manual_seed(0)
    for rows, container in ((8, "INT2"), (6, "INT4")):
        model = nn.Sequential(nn.Linear(16, rows), nn.ReLU())
        pack_model(model, BitPolicy({"0": WeightScheme(2)}))
        result = export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 16))
        assert (result.containers["0"], result.opset, result.fused) == (container, 25, 1)
        assert result.error < 1e-6


def test_two_bits_that_onnxruntime_cannot_fold_are_held_in_four(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(16, 32), nn.Linear(32, 16, bias=False)
            self.head.weight = self.table.weight

        def forward(self, indices):
            return self.head(torch.relu(self.table(indices)))

    for grid, container in (("asymmetric", "UINT4"), ("symmetric", "INT2")):
        model = Tied().eval()
        pack_model(model, BitPolicy({"both": WeightScheme(2, grid=grid)}, {"both": ("table", "head")}))
        result = export_onnx(model, tmp_path / "m.onnx", torch.tensor([[1, 2, 3], [4, 5, 6]]))
        assert result.containers == {"table": container, "head": container}


def test_an_older_opset_holds_two_bits_in_four(tmp_path):
    model = nn.Sequential(nn.Linear(16, 8))
    pack_model(model, BitPolicy({"0": WeightScheme(2)}))
    names = {"input_names": ["features"], "output_names": ["scores"]}
    result = export_onnx(model, tmp_path / "new" / "model.onnx", torch.randn(2, 16), opset=21, **names)
    assert (result.containers["0"], result.opset) == ("INT4", 21)
    graph = onnx.load(result.path).graph
    assert [graph.input[0].name, graph.output[0].name] == ["features", "scores"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_metadata_is_plain_json(exported):
    _, result, _ = exported
    [entry] = [entry for entry in onnx.load(result.path).metadata_props if entry.key == "lightning_mpq.policy"]
    assert json.loads(entry.value)["version"] == 2
