"""Whole networks in onnxruntime: the same numbers as in PyTorch, in a small file, or no file at all."""

import json
import sys

import pytest
import torch
from helpers.state import state_of
from torch import nn

from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.export.example_inputs import ExampleInputs
from lightning_mpq.export.onnx import export_onnx
from lightning_mpq.grids.registry import DEFAULT_GRIDS
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import pack_model, packed_layers, policy_of, stored_bytes
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytestmark = pytest.mark.filterwarnings("ignore")


def packed(model, granularity=("channel",)):
    """Pack every group with another width, grid and granularity than its neighbours."""
    schemes = {
        group.name: WeightScheme(2 + index % 7, granularity[index % len(granularity)], DEFAULT_GRIDS[index % 3])
        for index, group in enumerate(find_groups(model))
    }
    pack_model(model, BitPolicy(schemes, {group.name: group.layers for group in find_groups(model)}))
    return model


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
    packed(model, granularity)
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


class ByName(nn.Module):
    """Takes tokens and a mask by name, in any number."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(12, 16), nn.Linear(16, 3)

    def forward(self, input_ids, attention_mask, bias=None):
        hidden = self.head(torch.relu(self.table(input_ids))) * attention_mask.unsqueeze(-1)
        return {"logits": hidden, "pooled": hidden.sum(1) if bias is None else hidden.sum(1) + bias}


@pytest.fixture
def by_name():
    torch.manual_seed(0)
    ids = torch.randint(0, 12, (2, 6))
    return packed(ByName()).eval(), {"input_ids": ids, "attention_mask": (ids > 3).long()}


def test_a_mapping_is_called_by_name_in_any_batch_and_length(by_name, tmp_path):
    model, inputs = by_name
    result = export_onnx(model, tmp_path / "m.onnx", inputs)
    session = onnxruntime.InferenceSession(str(result.path))
    assert [(entry.name, entry.shape) for entry in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]), ("attention_mask", ["batch", "length"])]  # fmt: skip
    ids = torch.randint(0, 12, (1, 31))
    found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()})
    for own, other in zip(found, model(ids, torch.ones_like(ids)).values(), strict=True):
        torch.testing.assert_close(torch.as_tensor(own), other, rtol=0.05, atol=0.05)
    fixed = export_onnx(model, tmp_path / "fixed.onnx", inputs, dynamic_length=False)
    shapes = [entry.shape for entry in onnxruntime.InferenceSession(str(fixed.path)).get_inputs()]
    assert shapes == [["batch", 6], ["batch", 6]]


def test_a_mask_in_float_has_as_many_columns_as_there_are_tokens(by_name, tmp_path):
    model, inputs = by_name
    wide = {**inputs, "attention_mask": inputs["attention_mask"].float(), "bias": torch.ones(2, 3)}
    session = onnxruntime.InferenceSession(str(export_onnx(model, tmp_path / "m.onnx", wide).path))
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"], "bias": ["batch", 3]}


def test_lengths_that_cannot_be_tried_are_refused(by_name, tmp_path):
    model, inputs = by_name
    short = {name: value[:, :2] for name, value in inputs.items()}
    with pytest.raises(ValueError, match="needs example inputs of at least 3 tokens.*got 2.*dynamic_length=False"):
        export_onnx(model, tmp_path / "m.onnx", short)
    with pytest.raises(ValueError, match="pass dynamic_batch=True with it"):
        export_onnx(model, tmp_path / "m.onnx", inputs, dynamic_batch=False, dynamic_length=True)
    model.head.register_forward_hook(lambda layer, args, output: output.view(-1, 6, 3))
    with pytest.raises(ValueError, match="takes the 2 samples of example_inputs and not 3 of 5 tokens.*dynamic_length"):
        export_onnx(model, tmp_path / "m.onnx", inputs)


class Open(nn.Module):
    """Takes whatever its part does, as wrappers of a network do."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, *args, **kwargs):
        return self.part(*args, **kwargs)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["all by name", "one by place", "all by place"])
def test_a_forward_of_any_arguments_has_a_dynamic_batch_too(place, by_name, tmp_path):
    model, inputs = by_name
    names = [f"input_{n}" if n < place else name for n, name in enumerate(inputs)]
    given = ExampleInputs(tuple(inputs.values())[:place], dict(list(inputs.items())[place:]))
    wrapped = Open(model)
    session = onnxruntime.InferenceSession(str(export_onnx(wrapped, tmp_path / "m.onnx", given).path))
    assert [entry.name for entry in session.get_inputs()] == names
    assert "forward" not in wrapped.__dict__
    ids = torch.randint(0, 12, (5, 6))
    found = session.run(None, {name: value.numpy() for name, value in zip(names, (ids, ids), strict=True)})
    torch.testing.assert_close(torch.as_tensor(found[0]), model(ids, ids)["logits"], rtol=0.05, atol=0.05)


class TestRefusals:
    """No file appears, what was there stays, and the model is as before."""

    def refused(self, path, model, inputs, error, message, **options):
        path.write_bytes(b"an older model")
        before = state_of(model)
        types = [type(module) for module in model.modules()]
        with pytest.raises(error, match=message):
            export_onnx(model, path, inputs, **options)
        assert path.read_bytes() == b"an older model"
        assert list(path.parent.iterdir()) == [path]
        assert [type(module) for module in model.modules()] == types
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def linear(self):
        model = nn.Sequential(nn.Linear(4, 4))
        pack_model(model, BitPolicy({"0": WeightScheme(4)}))
        return model

    def test_nothing_packed_and_no_tensors(self, tmp_path):
        path = tmp_path / "model.onnx"
        self.refused(path, nn.Linear(4, 4), torch.randn(2, 4), ValueError, "Linear has no packed layer")
        self.refused(path, self.linear(), [[1.0]], TypeError, "example_inputs must be a tensor, several, or a mapping")
        self.refused(path, self.linear(), (), TypeError, "example_inputs must be a tensor, several, or a mapping")

    def test_inputs_that_the_model_does_not_take(self, tmp_path):
        path, said = tmp_path / "model.onnx", r"Sequential.forward does not take the example inputs \({}\): .*Give what"
        for given, described in (
            (torch.randn(2, 5), r"a float32 tensor \[2, 5\]"),
            (torch.ones(2, 4).int(), r"a int32 tensor \[2, 4\]"),
            ((torch.randn(2, 4),) * 2, r"a float32 tensor \[2, 4\], a float32 tensor \[2, 4\]"),
            ({"pixels": torch.randn(2, 4)}, r"pixels: a float32 tensor \[2, 4\]"),
        ):
            self.refused(path, self.linear(), given, TypeError, said.format(described))

    def test_bfloat16_has_a_way_out(self, tmp_path):
        path, model, inputs = tmp_path / "model.onnx", self.linear().bfloat16(), torch.randn(2, 4)
        self.refused(path, model, inputs.bfloat16(), ValueError, r"convert the model first, model\.float\(\)")
        assert export_onnx(model.float(), path, inputs).error < 1e-4

    def test_no_batch_in_common(self, tmp_path):
        inputs = (torch.randn(2, 4), torch.randn(3, 4))
        self.refused(
            tmp_path / "m.onnx", self.linear(), inputs, ValueError, r"shapes \[\[2, 4\], \[3, 4\]\].*dynamic_b"
        )

    def test_a_layer_that_changes_its_weight_is_named(self, tmp_path):
        model = nn.ModuleDict({"words": nn.Embedding(6, 4, max_norm=1.0)})
        pack_model(model, BitPolicy({"words": WeightScheme(4)}))
        self.refused(tmp_path / "m.onnx", model, torch.tensor([1]), ValueError, "layer 'words'.*max_norm")

    def test_a_model_that_pytorch_cannot_export(self, tmp_path):
        class Branching(nn.Sequential):
            def forward(self, x):
                return super().forward(x) if x.sum() > 0 else x

        model = Branching(nn.Linear(4, 4))
        pack_model(model, BitPolicy({"0": WeightScheme(4)}))
        said = r"PyTorch cannot export Branching to ONNX: .*data-dependent.*(?<!dynamic_batch=False\.)$"
        self.refused(tmp_path / "m.onnx", model, torch.randn(2, 4), ValueError, said)

    def test_results_that_differ(self, tmp_path, monkeypatch):
        import lightning_mpq.export.onnx.trace as module_under_test

        real = module_under_test.hold

        def wrong(quantized, **options):
            quantized.codes[0] ^= 1
            return real(quantized, **options)

        monkeypatch.setattr(module_under_test, "hold", wrong)
        self.refused(
            tmp_path / "m.onnx", self.linear(), torch.randn(2, 4), ValueError, "differ by .* nothing was written"
        )

    def test_a_fixed_batch_must_be_said_to_be_one(self, tmp_path):
        class Fixed(nn.Sequential):
            def forward(self, x):
                return super().forward(x.reshape(2, 4))

        model = Fixed(nn.Linear(4, 4))
        pack_model(model, BitPolicy({"0": WeightScheme(4)}))
        path = tmp_path / "m.onnx"
        with pytest.raises(ValueError, match="takes the 2 samples of example_inputs and not 3.*dynamic_batch=False"):
            export_onnx(model, path, torch.randn(2, 4))
        assert not path.exists()
        assert export_onnx(model, path, torch.randn(2, 4), dynamic_batch=False).batch_sizes == (2,)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_names_the_extra(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ImportError, match=rf"needs the package '{package}': pip install \"lightning_mpq\[onnx\]\""):
        export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 4))


def test_metadata_is_plain_json(exported):
    _, result, _ = exported
    [entry] = [entry for entry in onnx.load(result.path).metadata_props if entry.key == "lightning_mpq.policy"]
    assert json.loads(entry.value)["version"] == 2
