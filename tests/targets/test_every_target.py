"""What every target must do: a menu that can be written, ties, bytes as counted, a file that verify finds whole."""

import os
from importlib import import_module

import pytest
import torch
from helpers.deployed import Convolutions, Tokens, network, packed_for
from helpers.state import state_of

from lightning_mpq.allocation import Budget
from lightning_mpq.errors import CorruptModelError
from lightning_mpq.modules import packed_layers
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.options import CandidateOptions
from lightning_mpq.targets import Target, export_for, offer, target_named, verify, with_file_rest
from lightning_mpq.targets.registry import TARGETS

pytestmark = pytest.mark.filterwarnings("ignore")


def needed(name):
    for package in TARGETS[name].packages:
        pytest.importorskip(package, reason=f"needs the extra {TARGETS[name].extra!r}")
    if name == "openvino":
        torch.conv1d(torch.ones(1, 1, 8), torch.ones(1, 1, 3))  # torch reads the variable once, at its first kernel
        os.environ.pop("ONEDNN_MAX_CPU_ISA", None)  # OpenVINO has no kernel for packed weights below AVX2
    return target_named(name)


CASES = [(name, kind) for name in TARGETS for kind in (Convolutions, Tokens) if name != "llama-cpp"]
CASES += [("llama-cpp", "llama")]  # which reads models of transformers only, into a file of theirs


def gguf_llama():
    for package in ("gguf", "transformers"):
        pytest.importorskip(package, reason="needs the extra 'llama-cpp', and transformers")
    return import_module("helpers.gguf_llama")


def small(kind):
    """Return a network and what it takes."""
    return network(kind) if kind != "llama" else (gguf_llama().llama(tied=True), gguf_llama().tokens())


@pytest.fixture(scope="module", params=CASES, ids=[f"{name}-{getattr(kind, '__name__', kind)}" for name, kind in CASES])
def exported(request, tmp_path_factory):
    name, kind = request.param
    target = needed(name)
    net, inputs = small(kind)
    if name == "llama-cpp":
        target.gguf = gguf_llama().write_gguf(net, tmp_path_factory.mktemp("float") / "float.gguf")
    groups, candidates, chosen = packed_for(target, net)
    path = tmp_path_factory.mktemp(name) / "model"
    return target, net, inputs, groups, candidates, chosen, export_for(target, net, path, inputs)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_offered_fits_and_what_is_not_has_a_reason(name, kind):
    target, (net, _) = target_named(name), small(kind)
    groups, candidates = offer(target, net, CandidateOptions())
    layers, members = named_layers(net, remove_duplicate=False), {group.name: group.layers for group in groups}
    for candidate in candidates:
        assert all(target.why_not(layers[layer], candidate.scheme.weight) is None for layer in members[candidate.group])
    for tie in target.ties(net):
        owners = {next((g.name for g in groups if layer in g.layers), None) for layer in tie}
        assert len(owners) == 1
    found = [layer for group in groups for layer in group.layers] + list(groups.left_in_float)
    known = [layer for group in offer(Target(), net, CandidateOptions())[0] for layer in group.layers]
    assert set(known) <= set(found)
    assert all(reason for reason in groups.left_in_float.values())


def test_every_layer_takes_the_bytes_that_were_counted(exported):
    target, net, _, groups, _, chosen, found = exported
    assert found.layers + len(found.unused) == len(packed_layers(net)) == sum(len(group.layers) for group in groups)
    counted = sum(candidate.stored_bits for candidate in chosen.values())
    in_file = sum(stored.bytes for stored in target.read(found.path).values())
    if not found.unused:
        assert in_file == -(-counted // 8)
    assert found.promised_bytes == -(-counted // 8) + groups.float_bytes


def test_the_runtime_computes_what_the_packed_model_does(exported):
    target, net, inputs, *_, found = exported
    if found.not_compared:
        pytest.skip(found.not_compared)
    assert found.error is not None
    assert found.error < 0.5
    again = verify(found.path, model=net)
    assert (again.layers, again.error) == (found.layers, found.error)
    assert str(again).startswith(f"loaded {found.layers} of {found.layers + len(found.unused)} layers at their widths")
    more = torch.cat([inputs, inputs])
    assert verify(found.path, model=net, example_inputs=more).error < 0.5


def test_any_byte_that_has_changed_is_noticed(exported):
    *_, found = exported
    files = [p for p in found.path.rglob("*") if p.is_file()] if found.path.is_dir() else [found.path]
    for path in files:
        before = path.read_bytes()
        for place in (len(before) // 3, len(before) // 2, len(before) - 2):
            path.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
            with pytest.raises(CorruptModelError):
                verify(found.path)
        path.write_bytes(before[:-9])
        with pytest.raises(CorruptModelError):
            verify(found.path)
        path.write_bytes(before)
    verify(found.path)


def test_a_file_never_takes_more_than_was_counted_before(exported, tmp_path):
    """The rest is measured on the float model, and then holds for whatever is decided."""
    target, *_, found = exported
    net, inputs = small("llama" if target.name == "llama-cpp" else type(exported[1]))
    options = CandidateOptions(rounding="nearest")
    groups, candidates = offer(target, net, options)
    before = state_of(net)
    budget = with_file_rest(Budget(file_bytes=10**6), target, net, groups, candidates, inputs)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    counted = sum(stored.bytes for stored in target.read(found.path).values()) + budget.file_rest
    loose = 1600 if target.name == "openvino" else 320  # its XML says of a weight on another grid so much more
    assert found.file_bytes <= counted <= found.file_bytes + loose * found.layers
    _, _, chosen = packed_for(target, net, seed=1)
    with pytest.raises(ValueError, match="bytes, more than the 1,000 that it may; nothing was written"):
        export_for(target, net, tmp_path / "model", inputs, most_bytes=1000, verify=False)
    assert not list(tmp_path.iterdir())
    other = export_for(target, net, tmp_path / "model", inputs, verify=False)
    assert other.file_bytes <= sum(-(-c.stored_bits // 8) for c in chosen.values()) + budget.file_rest


def test_what_was_exported_is_replaced_and_nothing_else_is(exported):
    target, net, inputs, *_, found = exported
    export_for(target, net, found.path, inputs, verify=False)
    assert verify(found.path, model=net).error == found.error
    other = found.path.with_name("other")
    if found.path.is_dir():
        other.write_text("a file")
    else:
        other.mkdir()
    with pytest.raises(FileExistsError, match="other is a (file|folder); give another path"):
        export_for(target, net, other, inputs, verify=False)


def test_a_package_that_is_missing_is_named_with_its_extra_before_anything_is_written(exported, tmp_path, monkeypatch):
    target, net, inputs, *_ = exported
    for package in target.packages[:1]:
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ImportError, match=rf"The target '{target.name}' needs .*lightning_mpq\[{target.extra}\]"):
            export_for(target, net, tmp_path / "model", inputs)
    assert not list(tmp_path.iterdir())
