"""What is chosen for each layer, what is said of it, and what the choice survives."""

import copy
import gc
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from helpers.kernels import assert_close, packed_linear
from torch import nn

from lightning_mpq.modules import pack_model, set_memory, stored_bytes, use_kernels
from lightning_mpq.modules.kernels import prepared, registry
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

INPUTS = torch.randn(3, 10)


@pytest.fixture
def net():
    return packed_linear(6, 10, WeightScheme(3, 4, "half"))


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(registry, "_warned", set())


def test_plain_is_the_default_and_comes_back(net, recording):
    expected = net(INPUTS)
    assert net[0].kernel_choice == "plain"
    assert use_kernels(net)["0"].kernel == "recording"
    assert_close(net(INPUTS), expected)
    assert recording.calls[-1] == (3, 10)
    assert use_kernels(net, "plain").bytes == net[0].kernel_bytes == 0
    calls = len(recording.calls)
    assert torch.equal(net(INPUTS), expected)
    assert len(recording.calls) == calls


def test_the_cost_in_bytes_is_stated(net, recording):
    before = stored_bytes(net)
    choices = use_kernels(net)
    assert choices.bytes == 6 * 10 * 8
    assert stored_bytes(net) == before._replace(cached=480)
    assert "480 bytes in memory" in str(choices)
    assert "3-bit half/4" in repr(net)
    assert "kernel='auto' (480 bytes in memory)" in repr(net)


def test_layers_that_share_a_weight_share_its_preparation(recording):
    first, second = nn.Linear(10, 6), nn.Linear(10, 6)
    second.weight = first.weight
    net = nn.ModuleList([first, second])
    pack_model(net, BitPolicy({"tied": WeightScheme(4)}, {"tied": ("0", "1")}))
    choices = use_kernels(net)
    assert recording.prepared == 1
    assert (choices["0"].bytes, choices["1"].bytes) == (480, 0)
    assert stored_bytes(net).cached == choices.bytes == 480


def test_other_layers_stay_plain_and_the_report_says_why(recording):
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Linear(4, 2))
    pack_model(net, BitPolicy({"0": WeightScheme(4), "1": WeightScheme(4)}))
    with warnings.catch_warnings(action="error"):
        choices = use_kernels(net)
    assert [choice.kernel for choice in choices.choices] == ["plain", "recording"]
    assert "PackedConv2d" in choices["0"].why


def test_a_kernel_that_cannot_be_used_is_named_once_and_the_plain_path_taken(net, recording):
    expected = net(INPUTS)
    recording.refusal = "does not like this layer"
    with pytest.warns(UserWarning, match="'recording' cannot be used: it does not like this layer"):
        assert use_kernels(net, "recording")["0"].why == "recording does not like this layer"
    with warnings.catch_warnings(action="error"):
        assert torch.equal(net(INPUTS), expected)
        assert torch.equal(copy.deepcopy(net)(INPUTS), expected)
        use_kernels(net, "recording")


@pytest.mark.skipif(find_spec("auto_round_kernel") is not None, reason="auto-round-lib is installed here")
def test_a_missing_package_is_named_with_the_command_that_installs_it(net):
    expected = net(INPUTS)
    with pytest.warns(UserWarning, match=r"'auto-round' cannot be used: .*pip install 'lightning_mpq\[cpu-kernels\]'"):
        use_kernels(net, "auto-round")
    assert torch.equal(net(INPUTS), expected)


def test_a_kernel_that_computes_something_else_is_refused(net, recording):
    expected = net(INPUTS)
    recording.error = 1e-3
    with pytest.warns(UserWarning, match="apart from the plain path's"):
        assert use_kernels(net, "recording")["0"].kernel == "plain"
    assert torch.equal(net(INPUTS), expected)


def test_a_kernel_that_fails_to_prepare_is_refused(net, recording, monkeypatch):
    def broken(matrix, dtype):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(recording, "prepare", broken)
    with pytest.warns(UserWarning, match="no such instruction"):
        assert use_kernels(net, "recording")["0"].kernel == "plain"


def test_names_that_do_not_exist_and_models_without_packed_layers_are_refused(net):
    with pytest.raises(ValueError, match=r"kernel must be one of 'auto', 'plain', .*auto-round.*got 'cutlass'"):
        use_kernels(net, "cutlass")
    with pytest.raises(ValueError, match="Sequential has no packed layer"):
        use_kernels(nn.Sequential(nn.Linear(2, 2)))


def test_the_choice_survives_copies_pickles_casts_and_moves(net, recording):
    use_kernels(net)
    for moved in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net).bfloat16(), net.half()):
        calls = len(recording.calls)
        inputs = INPUTS.to(moved[0].weight_dtype)
        moved(inputs)
        assert len(recording.calls) > calls
        plain = copy.deepcopy(moved)
        use_kernels(plain, "plain")
        assert_close(moved(inputs), plain(inputs))
    assert len(pickle.dumps(net)) < 4000  # nothing of a kernel is saved
    assert not any("kernel" in key for key in net.state_dict())


@pytest.mark.parametrize("how", ["load_state_dict", "assign", "in place"])
def test_a_weight_that_changes_is_prepared_anew(net, recording, how):
    other = packed_linear(6, 10, WeightScheme(3, 4, "half"))
    for value in other.state_dict().values():
        value.random_(0, 255) if value.dtype == torch.uint8 else value.uniform_(0.1, 1)
    use_kernels(net)
    net(INPUTS)
    if how == "in place":
        for own, value in zip(net[0].stored_tensors().values(), other[0].stored_tensors().values(), strict=True):
            own.copy_(value)
        net[0].bias = other[0].bias
    else:
        net.load_state_dict(other.state_dict(), assign=how == "assign")
    assert_close(net(INPUTS), other(INPUTS))


def test_prepared_weights_go_with_the_model(recording):
    net = packed_linear(6, 10)
    use_kernels(net)
    matrix_places = {key[0] for key in prepared._entries}
    place = net[0].packed_codes.untyped_storage()._cdata, 0
    assert place in matrix_places
    del net
    gc.collect()
    prepared.release_unused()
    assert place not in {key[0] for key in prepared._entries}


def test_a_dequantized_weight_in_memory_needs_no_kernel(net, recording):
    expected = net(INPUTS)
    set_memory(net, "fast")
    assert "memory=" in use_kernels(net)["0"].why
    assert torch.equal(net(INPUTS), expected)
    assert not recording.calls


def test_a_model_on_the_meta_device_keeps_the_choice_for_later(net, recording):
    shell = copy.deepcopy(net).to("meta")
    assert "meta" in use_kernels(shell)["0"].why
    assert shell(INPUTS.to("meta")).shape == (3, 6)
    shell.load_state_dict(net.state_dict(), assign=True)
    assert_close(shell(INPUTS), net(INPUTS))
    assert recording.calls


def test_threads_prepare_a_weight_once(net, recording):
    expected = net(INPUTS).detach()
    net[0].kernel_choice = "auto"
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        for result in pool.map(net, [INPUTS] * 32):
            assert_close(result, expected)
    assert recording.prepared == 1
