"""Which target a file is verified by."""

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.cli.verify import main
from lightning_mpq.export.example_inputs import ExampleInputs
from lightning_mpq.export.outputs import relative_error

pytestmark = pytest.mark.filterwarnings("ignore")


class Own(mpq.targets.OnnxRuntime):
    name = "own"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    for package in Own.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    torch.manual_seed(0)
    net = mpq.quantize(nn.Sequential(nn.Linear(8, 4)), mpq.BitPolicy({"0": mpq.WeightScheme(4)}))
    path = tmp_path_factory.mktemp("own") / "net.onnx"
    mpq.export_for(Own(), net, path, torch.randn(2, 8))
    return path


def test_a_target_of_ones_own_is_asked_for(path, capsys):
    assert mpq.verify(path, target=Own()).layers == 1
    with pytest.raises(
        ValueError, match=r"exported for 'own', a target that this package does not bring.*target=\.\.\."
    ):
        mpq.verify(path)
    assert main([str(path)]) == 1
    assert "knows only targets of this package" in capsys.readouterr().err


def test_another_target_than_that_of_the_file_is_refused(path):
    with pytest.raises(ValueError, match="for the target 'own', and not for 'openvino': leave target= out"):
        mpq.verify(path, target=mpq.targets.OpenVino())


def test_a_target_may_be_said_by_its_name(path, tmp_path):
    net = mpq.quantize(nn.Sequential(nn.Linear(8, 4)), mpq.BitPolicy({"0": mpq.WeightScheme(4)}))
    mpq.export_for("onnxruntime", net, tmp_path / "net.onnx", torch.randn(2, 8))
    assert mpq.verify(tmp_path / "net.onnx", target="onnxruntime").layers == 1
    with pytest.raises(ValueError, match="for the target 'onnxruntime', and not for 'openvino'"):
        mpq.verify(tmp_path / "net.onnx", target="openvino")
    with pytest.raises(TypeError, match="does not take the example inputs"):
        mpq.verify(tmp_path / "net.onnx", model=net, example_inputs=torch.randn(2, 7))


@pytest.mark.parametrize("most", [0, -1, float("nan"), float("inf"), True, "1 MB"])
def test_what_is_no_number_of_bytes_is_refused(most, tmp_path):
    net = mpq.quantize(nn.Sequential(nn.Linear(8, 4)), mpq.BitPolicy({"0": mpq.WeightScheme(4)}))
    with pytest.raises(ValueError, match="most_bytes must be a positive number"):
        mpq.export_for("torch", net, tmp_path / "net", torch.randn(2, 8), most_bytes=most)
    assert not list(tmp_path.iterdir())


class Narrow(nn.Module):
    """Positive outputs near each other, so that those of two such networks differ by less than half of the largest."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.hidden, self.out = nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(tokens))).sigmoid()


def narrow(seed: int, bits: int = 8) -> nn.Module:
    return mpq.quantize(Narrow(seed), mpq.BitPolicy(dict.fromkeys(("hidden", "out"), mpq.WeightScheme(bits))))


@pytest.fixture(scope="module")
def of_integers(tmp_path_factory):
    for package in Own.packages:
        pytest.importorskip(package, reason="needs the extra 'onnx'")
    path = tmp_path_factory.mktemp("integers") / "net.onnx"
    torch.manual_seed(0)
    mpq.export_for("onnxruntime", narrow(0), path, torch.randn(4, 7, 24))
    return path


def test_where_products_are_integers_the_limit_is_that_of_their_rounding(of_integers):
    for seed in range(8):  # other inputs, of other sizes
        torch.manual_seed(seed)
        found = mpq.verify(of_integers, model=narrow(0), example_inputs=torch.randn(2 + seed, 7, 24) * (1 + seed))
        assert found.error < 0.05
    inputs = ExampleInputs.of(torch.randn(4, 7, 24))
    outputs = [[model(inputs.args[0]).detach()] for model in (narrow(0), narrow(1))]
    difference = relative_error(*outputs)
    assert 0.1 < difference < 0.5
    target = mpq.targets.OnnxRuntime()
    assert target.error(of_integers, [inputs], outputs[:1], None) < 0.05
    with pytest.raises(ValueError, match="onnxruntime .* and PyTorch differ by"):
        target.error(of_integers, [inputs], outputs[1:], None)


@pytest.mark.parametrize("target", ["onnxruntime", "torch"])
def test_another_model_is_refused_whatever_the_runtime_rounds(tmp_path, target, of_integers):
    inputs = torch.randn(4, 7, 24)
    path = of_integers if target == "onnxruntime" else tmp_path / "net"
    if target == "torch":
        mpq.export_for(target, narrow(0), path, inputs)
    with pytest.raises(ValueError, match=r"is not the one that was exported to .*: on the inputs .* differ by \d+ %"):
        mpq.verify(path, model=narrow(1), example_inputs=inputs)
    with pytest.raises(ValueError, match=r"is not the one that was exported .*does not take"):
        mpq.verify(path, model=nn.Linear(3, 3), example_inputs=torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"is not the one that was exported .*shapes"):
        mpq.verify(path, model=nn.Linear(24, 3), example_inputs=inputs)
