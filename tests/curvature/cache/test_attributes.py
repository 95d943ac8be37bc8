"""A cache tells models apart by whatever decides their outputs, and finds the same one in another process."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_mpq.curvature.cache.fingerprint import hash_model, hash_settings


class Held:
    def __init__(self, value: float) -> None:
        self.value = value


class Net(nn.Module):
    def __init__(self, held: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)
        self.held = held

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs)


def times(inputs: torch.Tensor, factor: float) -> torch.Tensor:
    return inputs * factor


def default(factor: float):
    def function(inputs, *, factor=factor):
        return inputs * factor

    return function


WAYS = {
    "number": lambda k: k,
    "within": lambda k: {"a": [k]},
    "object": Held,
    "tensor": torch.tensor,
    "tensors": lambda k: [torch.full((20, 20), k), torch.empty(2, device="meta")],
    "lambda": lambda k: lambda inputs: inputs * k,
    "partial": lambda k: partial(times, factor=k),
    "default": default,
    "set": lambda k: {k, "other"},
    "class": lambda k: nn.ReLU if k > 2 else nn.Tanh,
}


@pytest.mark.parametrize("way", WAYS)
def test_what_a_module_holds_counts(way):
    one, other, again = (hash_model(Net(WAYS[way](k))) for k in (1.5, 2.5, 1.5))
    assert one != other
    assert one == again  # no address is in it


def test_heads_of_attention_count_though_they_are_not_printed():
    torch.manual_seed(0)
    one = nn.MultiheadAttention(8, 2)
    other = nn.MultiheadAttention(8, 4)
    other.load_state_dict(one.state_dict())
    assert hash_model(one) != hash_model(other)


def test_forwards_and_hooks_of_an_instance_count():
    def scaled(model, k):
        model.forward = lambda inputs: model.layer(inputs) * k
        return model

    def hooked(model, k):
        model.layer.register_forward_hook(lambda module, inputs, outputs: outputs * k)
        return model

    for change in (scaled, hooked):
        hashes = [hash_model(change(Net(0), k)) for k in (1.0, 3.0, 3.0)]
        assert len({hash_model(Net(0)), *hashes}) == 3
        assert hashes[1] == hashes[2]


def test_modes_metrics_and_copies_do_not_count():
    model = Net(0)
    model.accuracy = MulticlassAccuracy(2)
    before = hash_model(model)
    model.accuracy(torch.tensor([0, 1]), torch.tensor([0, 0]))
    assert hash_model(copy.deepcopy(model).eval()) == before


def test_named_defaults_of_settings_count():
    one, other = (hash_settings("", [], [], {"forward_fn": default(k)}) for k in (1.0, 2.0))
    assert one != other
