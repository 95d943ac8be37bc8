"""Passes that wait at layers: same results as one pass for each layer, and no thread or hook left whatever happens."""

import random
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from helpers.networks import vectors
from helpers.state import hooks_of
from torch import Tensor, nn

from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.layerwise import LayerwiseForward
from lightning_mpq.network.lockstep import LockstepForward

pytestmark = pytest.mark.usefixtures("no_thread_is_left")


class TwoWays(nn.Module):
    """Leaves out its second layer where inputs are huge; keeps what it returned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)
        self.outputs: list[Tensor] = []

    def forward(self, inputs):
        hidden = torch.relu(self.first(inputs))
        self.outputs.append(self.second(hidden) if inputs.sum() < 1e6 else hidden)
        return self.outputs[-1]


BATCHES = vectors(5, 5, 5)
HUGE = torch.full((2, 6), 1e6)


def layers_of(model: TwoWays) -> dict[str, nn.Module]:
    return {"first": model.first, "second": model.second}


@pytest.mark.parametrize("when", ["before", "after"])
def test_both_ways_stop_at_the_same_inputs_and_outputs_whatever_is_changed_on_the_way(when):
    def seen(kind: type[LockstepForward | LayerwiseForward]) -> list[Tensor]:
        model, found = TwoWays(), []
        with kind(Calibration(model, BATCHES), layers_of(model), when) as passes, torch.no_grad():
            for name, layer in layers_of(model).items():
                for stop in passes.at(name):
                    found += [stop.inputs, *([] if stop.output is None else [stop.output.clone()])]
                if when == "before":
                    layer.weight.mul_(2)
        return found

    one, other = seen(LockstepForward), seen(LayerwiseForward)
    assert len(one) == (6 if when == "before" else 12)
    for tensor, twin in zip(one, other, strict=True):
        torch.testing.assert_close(tensor, twin)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pass_sees_what_was_changed_while_it_waited(when):
    model = TwoWays()
    with torch.no_grad():
        hidden = [torch.relu(model.first(batch)) for batch in BATCHES]
    with LockstepForward(Calibration(model, BATCHES), layers_of(model), when) as passes:
        for batch, stop in zip(BATCHES, passes.at("first"), strict=True):
            assert torch.equal(stop.inputs, batch)
            assert (stop.output is None) == (when == "before")
        seen = [stop.inputs for stop in passes.at("second")]
        for one, other in zip(seen, hidden, strict=True):
            torch.testing.assert_close(one, other)
            assert not one.requires_grad
    assert model.outputs == []  # cancelled where they waited
    assert hooks_of(model) == 0


def test_an_error_inside_of_a_pass_arrives_as_it_is_and_ends_the_others():
    model = TwoWays()
    data = [*BATCHES, torch.zeros(5, 9)]
    with (
        LockstepForward(Calibration(model, data), layers_of(model), "after") as passes,
        pytest.raises(TypeError, match="of batch 4"),
    ):
        list(passes.at("first"))


def test_a_batch_that_takes_another_way_stops_nowhere_or_waits_for_its_turn():
    model = TwoWays()
    data = [BATCHES[0], HUGE]
    with LockstepForward(Calibration(model, data), layers_of(model), "before") as passes:
        assert all(stop.layer == "first" for stop in passes.at("first"))
        one, other = passes.at("second")
        assert one.layer == "second"
        assert other is None
    backwards = dict(reversed(layers_of(model).items()))
    with LockstepForward(Calibration(model, data), backwards, "before") as passes:
        assert list(passes.at("second")) == [None, None]
        assert [stop.layer for stop in passes.at("first")] == ["first", "first"]
        assert passes.repeated == set()
        assert len(model.outputs) == 1  # of the pass that went to its end


def test_calls_that_come_too_late_are_told():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    layers = {"0": model[0], "2": model[2]}
    forward = Calibration(model, BATCHES, forward_fn=lambda net, x: net[2](net[0](net[0](x))))
    with LockstepForward(forward, layers, "before") as passes:
        assert [stop.inputs.shape for stop in passes.at("0")] == [(5, 6)] * 3
        assert [stop.layer for stop in passes.at("2")] == ["2"] * 3
        assert passes.repeated == {"0"}


class Draws(nn.Module):
    """Random numbers before, between and after two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        hidden = self.first(x + torch.randn_like(x)) * random.random()
        return self.second(nn.functional.dropout(hidden) + np.random.rand())


def test_each_pass_draws_the_numbers_of_its_batch_however_passes_are_mixed_and_nobody_else_sees_it():
    model, state = Draws(), torch.get_rng_state()
    layers = {"first": model.first, "second": model.second}

    def inputs(kind, twice: bool):
        with ExitStack() as stack:
            several = [
                stack.enter_context(kind(Calibration(model, BATCHES), layers, "before")) for _ in range(1 + twice)
            ]
            stops = [[*zip(*(passes.at(name) for passes in several), strict=True)] for name in layers]
        return [stop.inputs for together in stops for pair in together for stop in pair[-1:]]

    expected = inputs(LockstepForward, False)
    for found in (inputs(LockstepForward, True), inputs(LayerwiseForward, False)):
        assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert not torch.equal(expected[0] - BATCHES[0], expected[1] - BATCHES[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_calls_of_others_are_not_stopped():
    model = TwoWays()
    with LockstepForward(Calibration(model, BATCHES), layers_of(model), "before"):
        model(BATCHES[0])
    assert len(model.outputs) == 1
