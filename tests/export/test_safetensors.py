"""Saved models come back to the last bit, in this process or another, or are refused and change nothing."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from saved_net import INDICES, POLICY, SavedNet, packed_net
from torch import nn

import lightning_mpq.export.safetensors as module_under_test
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.export import load, save
from lightning_mpq.export.manifest import MANIFEST_NAME, Manifest, read_manifest
from lightning_mpq.modules import empty_packed_model, pack_model, policy_of, stored_bytes
from lightning_mpq.policy import BitPolicy, WeightScheme


def snapshot(model):
    objects = {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}
    return objects, {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}


def assert_unchanged(model, before):
    objects, tensors = snapshot(model)
    assert objects == before[0]
    assert tensors.keys() == before[1].keys()
    for name, (identity, value) in tensors.items():
        assert identity == before[1][name][0], name
        assert torch.equal(value, before[1][name][1]), name


def assert_same_model(loaded, net):
    expected = net.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, value in loaded.state_dict().items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name
    assert policy_of(loaded) == policy_of(net) == POLICY
    assert torch.equal(loaded.eval()(INDICES), net(INDICES))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(packed_net(), folder)
    return folder


def weights_file(folder):
    [path] = folder.glob("weights-*.safetensors")
    return path


def resign(folder, **changes):
    """Rewrite the manifest with other values and a valid hash, as a forger would."""
    from lightning_mpq.export.manifest import _body_sha256

    path = folder / MANIFEST_NAME
    body = json.loads(path.read_text())
    body.pop("sha256")
    body |= changes
    path.write_text(json.dumps({**body, "sha256": _body_sha256(body)}))


def test_what_was_saved_comes_back(saved):
    loaded = SavedNet().train()
    bias, statistics = loaded.mix.bias, loaded.conv[1].running_mean
    assert load(saved, loaded) is loaded
    assert loaded.training  # loading is not the place to change it
    assert loaded.mix.bias is bias
    assert loaded.conv[1].running_mean is statistics
    assert_same_model(loaded, packed_net())


def test_ties_and_views_hold_after_loading(saved):
    loaded = load(saved, SavedNet())
    assert loaded.again is loaded.mix
    assert loaded.twin.weight is loaded.left.weight
    assert loaded.table.packed_codes is loaded.head.packed_codes
    assert loaded.table.zero_point is loaded.head.zero_point
    assert loaded.column.data_ptr() == loaded.both[:, 1].data_ptr()


def test_a_model_on_the_meta_device_is_filled(saved):
    with torch.device("meta"):
        shell = SavedNet()
    load(saved, shell)
    assert isinstance(shell.left.weight, nn.Parameter)
    assert shell.left.weight is shell.twin.weight
    assert shell.table.packed_codes is shell.head.packed_codes
    assert_same_model(shell, packed_net())


def test_a_buffer_that_no_file_holds_is_not_left_on_the_meta_device(saved):
    with torch.device("meta"):
        shell = SavedNet()
        shell.register_buffer("positions", torch.arange(3), persistent=False)
    with pytest.raises(CorruptModelError, match="'positions' on the meta device"):
        load(saved, shell)
    assert shell.mix.weight.is_meta


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_type_that_a_model_computes_in_must_agree(tmp_path, dtype):
    net = packed_net().to(dtype)
    save(net, tmp_path)
    other = SavedNet()
    before = snapshot(other)
    with pytest.raises(CorruptModelError, match=rf"compute in {str(dtype)[6:]}, but that of SavedNet is float32.*\.to"):
        load(tmp_path, other)
    assert_unchanged(other, before)
    assert_same_model(load(tmp_path, SavedNet().to(dtype)), net)


def test_a_new_process_computes_the_same(saved, tmp_path):
    script = """
import sys, torch
from saved_net import INDICES, SavedNet
from lightning_mpq.export import load
torch.manual_seed(99)
torch.save(load(sys.argv[1], SavedNet()).eval()(INDICES), sys.argv[2])
"""
    answer = tmp_path / "answer.pt"
    command = [sys.executable, "-c", script, str(saved), str(answer)]
    environment = {**__import__("os").environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(answer, weights_only=True), packed_net()(INDICES))


def test_the_folder_holds_what_it_says(saved):
    visible = sorted(path.name for path in saved.iterdir() if not path.name.startswith("."))
    assert visible == [MANIFEST_NAME, weights_file(saved).name]
    manifest = read_manifest(saved)
    assert manifest.policy == POLICY
    assert manifest.model_class == "saved_net.SavedNet"
    assert manifest.aliases["head.packed_codes"] == "table.packed_codes"
    assert manifest.aliases["twin.weight"] == "left.weight"
    counted = stored_bytes(packed_net())
    header = int.from_bytes(weights_file(saved).read_bytes()[:8], "little") + 8
    assert manifest.weights_bytes - header == counted.total
    assert Manifest.from_json(manifest.to_json(), "memory") == manifest
    assert weights_file(saved).stat().st_mode == (saved / MANIFEST_NAME).stat().st_mode


def test_saving_again_replaces_the_model_and_leaves_nothing_behind(tmp_path):
    save(packed_net(0), tmp_path)
    first = weights_file(tmp_path)
    (tmp_path / ".weights-dead.tmp").write_bytes(b"left by a process that died")
    (tmp_path / "notes.txt").write_text("not ours")
    save(packed_net(1), tmp_path)
    assert weights_file(tmp_path) != first
    assert not list(tmp_path.glob(".weights-*"))
    assert (tmp_path / "notes.txt").exists()
    assert_same_model(load(tmp_path, SavedNet()), packed_net(1))
    second = weights_file(tmp_path)
    save(packed_net(1), tmp_path)
    assert weights_file(tmp_path) == second


@pytest.mark.parametrize("step", ["write_tensors", "write_text_atomically", "remove_leftovers"])
def test_a_save_that_fails_keeps_a_whole_model(tmp_path, monkeypatch, step):
    save(packed_net(0), tmp_path)
    real = getattr(module_under_test, step)

    def fail(*args, **options):
        if step == "write_tensors":
            real(*args, **options)
        raise OSError("no space left")

    monkeypatch.setattr(module_under_test, step, fail)
    with pytest.raises(OSError, match="no space left"):
        save(packed_net(1), tmp_path)
    monkeypatch.undo()
    expected = packed_net(1 if step == "remove_leftovers" else 0)
    assert_same_model(load(tmp_path, SavedNet()), expected)
    save(packed_net(2), tmp_path)  # the lock was given back, and the orphan goes
    assert_same_model(load(tmp_path, SavedNet()), packed_net(2))
    assert weights_file(tmp_path)


def test_several_writers_and_readers_never_mix_models(tmp_path):
    nets = [packed_net(seed) for seed in range(4)]
    outputs = [net(INDICES) for net in nets]
    save(nets[0], tmp_path)

    def write(number):
        save(nets[number % 4], tmp_path)

    def read(_):
        output = load(tmp_path, SavedNet()).eval()(INDICES)
        return [torch.equal(output, expected) for expected in outputs]

    with ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(write, number) for number in range(16)]
        reads = [pool.submit(read, number) for number in range(16)]
        for done in writes:
            done.result()
        assert all(sum(done.result()) == 1 for done in reads)
    assert weights_file(tmp_path)


def test_two_processes_that_save_to_one_folder_do_not_mix(tmp_path):
    script = """
import sys
from saved_net import packed_net
from lightning_mpq.export import save
net = packed_net(int(sys.argv[2]))
for _ in range(20):
    save(net, sys.argv[1])
"""
    environment = {**__import__("os").environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"}
    commands = [[sys.executable, "-c", script, str(tmp_path), str(seed)] for seed in (1, 2)]
    writers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for command in commands]
    expected = [packed_net(seed)(INDICES) for seed in (1, 2)]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / MANIFEST_NAME).exists():
            output = load(tmp_path, SavedNet()).eval()(INDICES)
            assert any(torch.equal(output, each) for each in expected)
            seen += 1
    assert [writer.wait() for writer in writers] == [0, 0], [writer.stderr.read() for writer in writers]
    assert seen
    assert weights_file(tmp_path)


def test_a_reader_takes_the_new_file_if_another_process_saves_in_between(tmp_path, monkeypatch):
    save(packed_net(0), tmp_path)
    stale = read_manifest(tmp_path)
    save(packed_net(1), tmp_path)
    manifests = iter([stale])
    monkeypatch.setattr(
        module_under_test, "read_manifest", lambda folder: next(manifests, None) or read_manifest(folder)
    )
    assert_same_model(load(tmp_path, SavedNet()), packed_net(1))


def test_a_file_system_without_locks_still_saves(tmp_path, monkeypatch):
    class NoLock:
        def __init__(self, path):
            pass

        def acquire(self):
            raise NotImplementedError

    monkeypatch.setattr(module_under_test, "FileLock", NoLock)
    save(packed_net(0), tmp_path)
    save(packed_net(1), tmp_path)
    assert_same_model(load(tmp_path, SavedNet()), packed_net(1))
    assert len(list(tmp_path.glob("weights-*"))) == 2  # somebody may still be reading the old one


class TestRefusals:
    """What does not belong together is named, and the model stays as it was."""

    def refused(self, folder, model, message):
        before = snapshot(model)
        with pytest.raises(CorruptModelError, match=message):
            load(folder, model)
        assert_unchanged(model, before)

    def test_no_saved_model(self, tmp_path):
        self.refused(tmp_path, SavedNet(), f"no saved model in .*{MANIFEST_NAME} is missing")
        self.refused(tmp_path / "gone", SavedNet(), "no saved model in")
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

    @pytest.mark.parametrize(("old", "new"), [("half", "symmetric"), ("saved_net.SavedNet", "saved_net.SavedMet")])
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
            (nn.Sequential(nn.Linear(3, 2)), "saved from saved_net.SavedNet does not fit Sequential: .*'table'"),
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
        before = {name: value.clone() for name, value in model.state_dict().items()}
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
