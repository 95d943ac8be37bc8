"""What cannot be exported to ONNX: no file appears, what was there stays, and the model is as before."""

import sys

import pytest
import torch
from helpers.state import state_of
from torch import nn

from lightning_mpq.export.onnx import export_onnx
from lightning_mpq.modules import pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")
pytestmark = pytest.mark.filterwarnings("ignore")


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
