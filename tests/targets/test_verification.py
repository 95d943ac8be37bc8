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
