"""Which target a file is verified by."""

import pytest
import torch
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.cli.verify import main

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
