"""Passes that wait at layers: same results as ordinary passes, and no thread or hook left whatever happens."""

import threading

import pytest
import torch
from torch import nn

from lightning_mpq.network.lockstep import PausedPasses, order_of_calls


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.outputs: list[torch.Tensor] = []

    def forward(self, inputs):
        hidden = torch.relu(self.first(inputs))
        self.outputs.append(self.second(hidden) if inputs.sum() < 1e6 else hidden)
        return self.outputs[-1]


def batches() -> list[torch.Tensor]:
    return list(torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1)))


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def layers_of(model: Net) -> dict[str, nn.Module]:
    return {"first": model.first, "second": model.second}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pass_sees_what_was_changed_while_it_waited(when):
    model = Net()
    with torch.no_grad():
        hidden = [torch.relu(model.first(batch)) for batch in batches()]
    with PausedPasses(model, batches(), layers_of(model), when) as passes:
        for batch, stop in zip(batches(), passes.at("first"), strict=True):
            assert torch.equal(stop.inputs, batch)
            assert (stop.output is None) == (when == "before")
        seen = [stop.inputs for stop in passes.at("second")]
        assert all(torch.equal(one, other) for one, other in zip(seen, hidden, strict=True))
        assert not any(tensor.requires_grad for tensor in seen)
    assert model.outputs == []  # cancelled where they waited
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_inside_of_a_pass_arrives_as_it_is_and_ends_the_others():
    model = Net()
    data = [*batches(), torch.zeros(5, 9)]
    with PausedPasses(model, data, layers_of(model), "after") as passes, pytest.raises(TypeError, match="of batch 4"):
        list(passes.at("first"))


def test_a_batch_that_takes_another_way_is_named():
    model = Net()
    data = [batches()[0], torch.full((2, 3), 1e6)]
    with PausedPasses(model, data, layers_of(model), "before") as passes:
        list(passes.at("first"))
        with pytest.raises(ValueError, match="'second' comes next .* batch 2 ends without"):
            list(passes.at("second"))
    with (
        pytest.raises(ValueError, match="batch 1 calls 'first' first"),
        PausedPasses(model, data, layers_of(model), "before") as passes,
    ):
        list(passes.at("second"))


def test_calls_of_others_are_not_stopped():
    model = Net()
    with PausedPasses(model, batches(), layers_of(model), "before"):
        model(batches()[0])
    assert len(model.outputs) == 1


def test_the_order_of_calls_counts_repetitions():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.append(model[0])
    assert order_of_calls(model, torch.zeros(1, 2), {"1": model[1], "0": model[0]}) == ["0", "1", "0"]
