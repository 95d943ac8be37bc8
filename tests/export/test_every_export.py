"""What every export must do: write whole files or none, leave the model alone, and refuse in a sentence."""

import os
from pathlib import Path

import pytest
import torch
from helpers.state import state_of
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.modules import packed_layers

INPUTS = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))


def to_onnx(model, path):
    pytest.importorskip("onnxscript", reason="needs the extra 'onnx'")
    mpq.export_onnx(model, path.with_suffix(".onnx"), INPUTS)
    return path.with_suffix(".onnx")


def to_compressed_tensors(model, path):
    pytest.importorskip("compressed_tensors", reason="needs the extra 'compressed-tensors'")
    return mpq.export_compressed_tensors(model, path)


every_export = pytest.mark.parametrize("export", [mpq.save, to_onnx, to_compressed_tensors])


def network(seed=0, packed=True):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    net(INPUTS)
    if packed:
        schemes = {"0": mpq.WeightScheme(4, 32, "symmetric"), "3": mpq.WeightScheme(8, "channel", "symmetric")}
        mpq.quantize(net, mpq.BitPolicy(schemes), batches=[INPUTS])
    return net


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_export
def test_the_model_is_left_as_it_was(export, tmp_path):
    net = network().train()
    before = state_of(net)
    layers = {name: id(layer) for name, layer in packed_layers(net).items()}
    export(net.eval() if export is to_onnx else net, tmp_path / "model")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert {name: id(layer) for name, layer in packed_layers(net).items()} == layers
    assert net.training == (export is not to_onnx)


@every_export
def test_a_model_without_packed_layers_is_refused(export, tmp_path):
    with pytest.raises(ValueError, match="(?i)no packed layer"):
        export(network(packed=False).eval(), tmp_path / "model")
    assert contents(tmp_path) == {}


@every_export
def test_a_second_model_takes_the_place_of_the_first_whole_or_is_refused(export, tmp_path):
    one, two = network(0).eval(), network(1).eval()
    first = export(two, tmp_path / "alone")
    alone = contents(first) if first.is_dir() else first.read_bytes()
    first = export(one, tmp_path / "model")
    if export is to_compressed_tensors:  # a folder that may hold a tokenizer and more beside the weights
        before = contents(first)
        with pytest.raises(FileExistsError, match="is not empty; give a folder that does not exist yet"):
            export(two, tmp_path / "model")
        assert contents(first) == before
        return
    second = export(two, tmp_path / "model")
    assert (contents(second) if second.is_dir() else second.read_bytes()) == alone


@every_export
def test_a_disk_that_fails_at_the_last_moment_leaves_the_earlier_files(export, tmp_path, monkeypatch):
    one, two = network(0).eval(), network(1).eval()
    export(one, tmp_path / "model")
    before = contents(tmp_path)

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    for owner, call in ((os, "replace"), (os, "rename"), (Path, "replace"), (Path, "rename")):
        monkeypatch.setattr(owner, call, fails)
    with pytest.raises(OSError, match="No space left"):
        export(two, tmp_path / ("other" if export is to_compressed_tensors else "model"))
    assert contents(tmp_path) == before


@every_export
def test_a_file_where_a_folder_should_be_is_refused_and_kept(export, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises((OSError, ValueError)):
        export(network().eval(), tmp_path / "file" / "model")
    assert contents(tmp_path) == {"file": b"kept"}
