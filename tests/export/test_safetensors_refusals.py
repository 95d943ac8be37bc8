"""Saved models that do not belong together, or cannot be saved, are refused by name, and nothing changes."""

import json
import os

import pytest
import torch
from helpers.saved_net import INDICES, POLICY, SavedNet, assert_unchanged, packed_net, resign, snapshot, weights_file
from helpers.special_files import make
from helpers.state import state_of
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_mpq import load, save
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.export.manifest import MANIFEST_NAME
from lightning_mpq.modules import empty_packed_model, pack_model
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(packed_net(), folder)
    return folder


class TestRefusals:
    """What does not belong together is named, and the model stays as it was."""

    def refused(self, folder, model, message):
        before = snapshot(model)
        with pytest.raises(CorruptModelError, match=message):
            load(folder, model)
        assert_unchanged(model, before)

    def test_no_saved_model(self, tmp_path):
        self.refused(tmp_path, SavedNet(), f"no saved model in .*{MANIFEST_NAME} is missing")
        self.refused(tmp_path / "gone", SavedNet(), "no saved model at")
        (tmp_path / MANIFEST_NAME).write_text('{"format": "something else"}')
        self.refused(tmp_path, SavedNet(), "not a model saved by lightning_mpq")
        (tmp_path / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
        self.refused(tmp_path, SavedNet(), "is not text")

    def test_missing_or_renamed_tensor_file(self, tmp_path):
        save(packed_net(), tmp_path)
        path = weights_file(tmp_path)
        path.rename(tmp_path / "weights-0123456789abcdef.safetensors")
        self.refused(tmp_path, SavedNet(), f"{path.name} is missing, though {MANIFEST_NAME} names it")

    def test_another_version(self, tmp_path):
        save(packed_net(), tmp_path)
        resign(tmp_path, version=1)
        self.refused(tmp_path, SavedNet(), "format version 1; this release reads version 2")

    def test_a_cut_off_tensor_file(self, tmp_path):
        save(packed_net(), tmp_path)
        content = weights_file(tmp_path).read_bytes()
        weights_file(tmp_path).write_bytes(content[:-1])
        self.refused(tmp_path, SavedNet(), f"has {len(content) - 1} bytes instead of {len(content)}: it is cut off")

    @pytest.mark.parametrize(
        ("old", "new"), [("half", "symmetric"), ("helpers.saved_net.SavedNet", "helpers.saved_net.SavedMet")]
    )
    def test_an_altered_policy(self, tmp_path, old, new):
        save(packed_net(), tmp_path)
        path = tmp_path / MANIFEST_NAME
        path.write_text(path.read_text().replace(f'"{old}"', f'"{new}"'))
        self.refused(tmp_path, SavedNet(), "was altered after it was saved: its hash differs")

    def test_tensors_of_another_save(self, tmp_path):
        save(packed_net(0), tmp_path / "a")
        save(packed_net(1), tmp_path / "b")
        weights_file(tmp_path / "b").replace(weights_file(tmp_path / "a"))
        self.refused(tmp_path / "a", SavedNet(), "The tensor '.*' in .* is damaged")

    def test_one_flipped_bit_names_its_tensor(self, tmp_path):
        save(packed_net(), tmp_path)
        path = weights_file(tmp_path)
        content = bytearray(path.read_bytes())
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        for name, entry in header.items():
            start, stop = entry["data_offsets"] if name != "__metadata__" else (0, 0)
            if start == stop:
                continue
            content[8 + length + start] ^= 1
            path.write_bytes(content)
            self.refused(tmp_path, SavedNet(), f"The tensor '{name}' .* is damaged")
            content[8 + length + start] ^= 1
        path.write_bytes(content)
        load(tmp_path, SavedNet())

    def test_paths_out_of_the_folder(self, tmp_path):
        save(packed_net(), tmp_path / "model")
        weights_file(tmp_path / "model").rename(tmp_path / "weights-0123456789abcdef.safetensors")
        for name in ("../weights-0123456789abcdef.safetensors", "/etc/passwd", ".", ""):
            resign(tmp_path / "model", weights_file=name)
            self.refused(tmp_path / "model", SavedNet(), "is not the name of a tensor file")

    def test_another_architecture(self, saved):
        wider, extra, missing, other = SavedNet(), SavedNet(), SavedNet(), SavedNet()
        wider.left = nn.Linear(6, 7)
        extra.more = nn.Linear(2, 2)
        missing.recurrent = nn.Identity()
        other.mix = nn.LayerNorm(6)
        untied = SavedNet()
        untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
        for model, message in [
            (
                nn.Sequential(nn.Linear(3, 2)),
                "saved from helpers.saved_net.SavedNet does not fit Sequential: .*'table'",
            ),
            (wider, r"tensor 'left.weight' as float32 \[7, 6\], but .* holds it as float32 \[6, 6\]"),
            (extra, "SavedNet needs the tensor 'more.weight'"),
            (missing, "SavedNet does not have the tensor 'recurrent.weight_ih_l0'"),
            (other, "'mix' is of type LayerNorm"),
        ]:
            self.refused(saved, model, message)
        assert torch.equal(load(saved, untied).eval()(INDICES), packed_net()(INDICES))  # it can hold two copies

    @pytest.mark.parametrize(
        ("saved", "other"),
        [
            (lambda: nn.Linear(6, 3), lambda: nn.Linear(7, 3)),  # 18 and 21 codes fill the same three blocks of eight
            (lambda: nn.Conv2d(2, 3, (1, 3)), lambda: nn.Conv2d(2, 3, (3, 1))),
        ],
    )
    def test_a_layer_of_another_shape_with_as_many_bytes(self, tmp_path, saved, other):
        net = nn.Sequential(saved())
        pack_model(net, BitPolicy({"0": WeightScheme(4)}))
        save(net, tmp_path)
        model = nn.Sequential(other())
        self.refused(tmp_path, model, r"weight of layer '0' was saved with the shape \[.*but that of Sequential has")
        empty_packed_model(model, BitPolicy({"0": WeightScheme(4)}))
        before = state_of(model)
        with pytest.raises(RuntimeError, match=r"0\.packed_codes holds a weight of shape \[.*and the layer has \["):
            model.load_state_dict(net.state_dict())
        assert torch.equal(model.state_dict()["0.packed_codes"], before["0.packed_codes"])

    def test_a_model_that_ties_what_the_file_does_not(self, tmp_path):
        torch.manual_seed(0)
        net = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abc"})
        tied = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in "abc"})
        tied["c"].weight = tied["b"].weight
        pack_model(net, BitPolicy({"a": WeightScheme(4)}))
        save(net, tmp_path)
        self.refused(tmp_path, tied, "one tensor under the names 'b.weight' and 'c.weight', but .* two different")

    def test_a_packed_model(self, saved):
        with pytest.raises(TypeError, match="packed already"):
            load(saved, packed_net())

    def test_a_tensor_that_cannot_be_written_rolls_back_the_others(self, saved):
        model = SavedNet()
        model.empty, model.both, model.column = torch.empty(0, 3), torch.zeros(1).expand(2, 3), torch.zeros(2)
        self.refused_by_torch(saved, model)

    def refused_by_torch(self, folder, model):
        before = snapshot(model)
        with pytest.raises(RuntimeError):
            load(folder, model)
        assert_unchanged(model, before)


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Stateful(nn.Linear):
        def get_extra_state(self):
            return {"any": "object"}

    with pytest.raises(ValueError, match="no packed layer to save"):
        save(SavedNet(), tmp_path / "a")
    net = nn.Sequential(nn.Linear(3, 2), Stateful(2, 2))
    pack_model(net, BitPolicy({"0": WeightScheme(4)}))
    with pytest.raises(ValueError, match=r"1 \(Stateful\) keeps state that is not a tensor"):
        save(net, tmp_path / "a")
    with torch.device("meta"):
        shell = SavedNet()
    empty_packed_model(shell, POLICY)
    with pytest.raises(ValueError, match="is on the meta device"):
        save(shell, tmp_path / "a")
    sparse = packed_net()
    sparse.both = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match="'both' is in torch.sparse_coo layout"):
        save(sparse, tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("which", ["manifest", "weights"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "giant", "loop"])
def test_what_is_no_ordinary_file_is_refused_before_it_is_read(tmp_path, which, kind):
    save(packed_net(), tmp_path)
    path = tmp_path / MANIFEST_NAME if which == "manifest" else weights_file(tmp_path)
    path.unlink()
    make(kind, path)
    with pytest.raises(CorruptModelError, match=path.name):
        load(tmp_path, SavedNet())


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("given", [BoringModel, SavedNet()])
@pytest.mark.parametrize("kind", ["pipe", "device", "giant", "loop"])
def test_a_checkpoint_that_is_no_ordinary_file_is_refused(tmp_path, given, kind):
    with pytest.raises(CorruptModelError, match="x.ckpt"):
        load(make(kind, tmp_path / "x.ckpt"), given)


def test_a_tensor_file_larger_than_its_tensors_is_refused_before_it_is_read(tmp_path):
    save(packed_net(), tmp_path)
    os.truncate(weights_file(tmp_path), 2**30)
    resign(tmp_path, weights_bytes=2**30)
    with pytest.raises(CorruptModelError, match="more than its tensors take"):
        load(tmp_path, SavedNet())
