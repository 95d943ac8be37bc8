"""Saved models come back to the last bit, in this process or another, and writers do not mix."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.processes import READY, run_python
from helpers.saved_net import INDICES, POLICY, SavedNet, assert_unchanged, packed_net, snapshot, weights_file
from torch import nn

import lightning_mpq.export.safetensors as module_under_test
from lightning_mpq import load, save
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.export.manifest import MANIFEST_NAME, Manifest, read_manifest
from lightning_mpq.modules import policy_of, stored_bytes
from lightning_mpq.tools import locks


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
from helpers.saved_net import INDICES, SavedNet
from lightning_mpq import load
torch.manual_seed(99)
torch.save(load(sys.argv[1], SavedNet()).eval()(INDICES), sys.argv[2])
"""
    answer = tmp_path / "answer.pt"
    run_python(script, saved, answer)
    assert torch.equal(torch.load(answer, weights_only=True), packed_net()(INDICES))


def test_the_folder_holds_what_it_says(saved):
    visible = sorted(path.name for path in saved.iterdir() if not path.name.startswith("."))
    assert visible == [MANIFEST_NAME, weights_file(saved).name]
    manifest = read_manifest(saved)
    assert manifest.policy == POLICY
    assert manifest.model_class == "helpers.saved_net.SavedNet"
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
    for name in (".weights-dead.tmp", ".lightning_mpq.json.k3v_8x1z", ".tmpA1b2C3"):
        (tmp_path / name).write_bytes(b"left by a process of an earlier release that died")
    (tmp_path / "notes.txt").write_text("not ours")
    save(packed_net(1), tmp_path)
    assert weights_file(tmp_path) != first
    assert [path.name for path in tmp_path.glob(".*")] == [module_under_test.LOCK_NAME]
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


def save_often(folder, seed):
    net = packed_net(seed)
    for _ in range(20):
        save(net, folder)


def test_two_processes_that_save_to_one_folder_do_not_mix(tmp_path):
    writers = [READY.Process(target=save_often, args=(tmp_path, seed), daemon=True) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    expected = [packed_net(seed)(INDICES) for seed in (1, 2)]
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if (tmp_path / MANIFEST_NAME).exists():
            output = load(tmp_path, SavedNet()).eval()(INDICES)
            assert any(torch.equal(output, each) for each in expected)
            seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0]
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
        def __init__(self, path, mode):
            pass

        def acquire(self, timeout):
            raise NotImplementedError

    monkeypatch.setattr(locks, "FileLock", NoLock)
    save(packed_net(0), tmp_path)
    save(packed_net(1), tmp_path)
    assert_same_model(load(tmp_path, SavedNet()), packed_net(1))
    assert len(list(tmp_path.glob("weights-*"))) == 2  # somebody may still be reading the old one


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("call", [1, 2])
def test_what_a_killed_save_left_goes_with_the_next_one(tmp_path, step, call):
    save(packed_net(0), tmp_path)
    child = os.fork()
    if child == 0:
        plain, calls = getattr(os, step), []

        def die(*args, **options):
            calls.append(step)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **options)

        setattr(os, step, die)
        save(packed_net(1), tmp_path)
        os._exit(0)
    os.waitpid(child, 0)
    loaded = load(tmp_path, SavedNet()).eval()(INDICES)
    assert any(torch.equal(loaded, packed_net(seed)(INDICES)) for seed in (0, 1))
    save(packed_net(2), tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(
        [module_under_test.LOCK_NAME, MANIFEST_NAME, weights_file(tmp_path).name]
    )


def test_a_lock_that_is_not_given_back_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(locks, "MOST_SECONDS", 0.1)
    save(packed_net(0), tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with locks.locked(tmp_path / module_under_test.LOCK_NAME):
        with pytest.warns(UserWarning, match="Waiting for the lock"), pytest.raises(TimeoutError, match=r"\.lock"):
            save(packed_net(1), tmp_path)
        with pytest.warns(UserWarning, match="Waiting"), pytest.raises(CorruptModelError, match=r"not JSON.*\.lock"):
            load(tmp_path, SavedNet())


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_asks_for(tmp_path, mask):
    before = os.umask(mask)
    try:
        save(packed_net(0), tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
