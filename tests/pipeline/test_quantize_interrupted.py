"""Ctrl-C at any line of a clean-up leaves a whole model: no hook, no thread, flags and modes as they were."""

import copy
import threading

import pytest
import torch
from helpers.interrupts import InterruptAt, hooks_of, new_threads
from torch import nn

from lightning_mpq import fake_quantize, quantize
from lightning_mpq.finetune import fake_quantized_layers
from lightning_mpq.modules import packed_layers
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.policy import BitPolicy
from lightning_mpq.schemes import WeightScheme

SCHEME = WeightScheme(3, rounding="second_order")
BATCHES = [torch.randn(8, 6, generator=torch.Generator().manual_seed(number)) for number in range(3)]
POLICY = BitPolicy({name: SCHEME for name in "035"})


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers).train()


CLEAN_UPS = {
    "_stopping", "end", "__exit__", "afterwards", "after_errors", "cancel", "clean_up", "join", "leave", "remove",
    "restore", "undo", "_put",
}  # fmt: skip


def cleans_up(frame):
    return frame.f_code.co_name in CLEAN_UPS


def assert_whole(model, float_state, threads, where):
    assert hooks_of(model) == 0, where
    assert not new_threads(threads), where
    assert all(parameter.requires_grad for parameter in model.parameters()), where
    assert all(part.training for part in model.modules()), where
    if packed_layers(model):
        assert set(packed_layers(model)) == set("035"), where
    else:
        assert all(torch.equal(value, float_state[name]) for name, value in model.state_dict().items()), where


def test_quantizing_is_interrupted_in_every_line_of_its_clean_ups():
    original = network()
    state, threads = copy.deepcopy(original.state_dict()), threading.enumerate()
    models = []

    def run():
        models[:] = [copy.deepcopy(original)]
        quantize(models[0], POLICY, BATCHES)

    interrupting = InterruptAt(run, cleans_up)
    assert interrupting.lines > 30
    for stop in range(1, interrupting.lines + 1):
        where, _ = interrupting.interrupted(stop)
        assert where is not None
        assert_whole(models[0], state, threads, where)


def test_packing_for_a_while_is_interrupted_in_every_line():
    original = network()
    state, threads = copy.deepcopy(original.state_dict()), threading.enumerate()
    models = []

    def run():
        models[:] = [copy.deepcopy(original)]
        with temporarily_packed(models[0], BitPolicy({name: WeightScheme(3) for name in "035"})):
            pass

    interrupting = InterruptAt(run, lambda frame: "temporary_packing" in frame.f_code.co_filename or cleans_up(frame))
    assert interrupting.lines > 20
    for stop in range(1, interrupting.lines + 1):
        where, _ = interrupting.interrupted(stop)
        assert not packed_layers(models[0]), where
        assert_whole(models[0], state, threads, where)


def test_fake_quantization_begins_wholly_or_not_at_all():
    original = network()
    state = copy.deepcopy(original.state_dict())
    models = []
    policy = BitPolicy({name: WeightScheme(3) for name in "035"})

    def run():
        models[:] = [copy.deepcopy(original)]
        fake_quantize(models[0], policy)

    interrupting = InterruptAt(run, lambda frame: "fake_quantization" in frame.f_code.co_filename or cleans_up(frame))
    for stop in range(1, interrupting.lines + 1):
        where, _ = interrupting.interrupted(stop)
        if not fake_quantized_layers(models[0]):
            assert all(torch.equal(value, state[name]) for name, value in models[0].state_dict().items()), where
        else:
            assert len(fake_quantized_layers(models[0])) == 3, where


@pytest.mark.parametrize("what", ["pack", "float_weights"])
def test_fake_quantized_layers_are_all_there_after_an_interrupt(what):
    policy = BitPolicy({name: WeightScheme(3) for name in "035"})
    models = []

    def run():
        models[:] = [network()]
        handle = fake_quantize(models[0], policy)
        models.append(handle)
        if what == "pack":
            handle.pack()
        else:
            with handle.float_weights():
                pass

    names = {"pack", "float_weights", "stop_all", "start_all", "_start", "quantizers_in"}
    interrupting = InterruptAt(run, lambda frame: frame.f_code.co_name in names)
    for stop in range(1, interrupting.lines + 1):
        where, _ = interrupting.interrupted(stop)
        if len(models) == 2:  # fake quantization had begun
            assert len(fake_quantized_layers(models[0])) in (0, 3), where
            assert not packed_layers(models[0]) or what == "pack", where
