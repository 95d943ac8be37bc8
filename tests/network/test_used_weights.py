"""Which weights a forward pass computes with, by calls, functions or within attention, and which merely lie there."""

import pytest
import torch
from helpers.networks import mlp, vectors
from helpers.weight_uses import MODELS, make
from torch import nn
from torch.nn.functional import linear

from lightning_mpq.groups.groups import find_groups
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.network.named_weights import named_layers
from lightning_mpq.network.used_weights import unused_weights


def unused(model: nn.Module, batches) -> list[str]:
    names = [layer for group in find_groups(model) for layer in group.layers]
    layers = {name: named_layers(model)[name] for name in names}
    return unused_weights(Calibration.of(model, batches), layers)


@pytest.mark.parametrize("kind", MODELS.values(), ids=list(MODELS))
def test_every_way_of_using_a_weight_is_seen(kind):
    model, batch = make(kind)
    model.idle = nn.Linear(3, 3)
    assert unused(model, [batch]) == ["idle"]


class Experts(nn.Module):
    """Each sample goes to the expert that its sign says; the router's weight is read by a function alone."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(6, 1)
        self.experts = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))
        self.copy = nn.Linear(6, 3)

    def forward(self, x):
        chosen = (linear(x, self.router.weight) > 0).long().flatten()
        self.copy.weight.mul_(1.0)  # writing to a weight is not using it
        out = torch.zeros(len(x), 3)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return out


def test_an_expert_that_no_sample_reaches_is_not_used_and_one_of_a_later_batch_is():
    torch.manual_seed(0)
    model = Experts()
    one_sided = [x[(x @ model.router.weight.T > 0).flatten()] for x in vectors(16, 16)]
    assert unused(model, one_sided) == ["experts.0", "copy"]
    assert unused(model, [one_sided[0], -one_sided[1]]) == ["copy"]


def test_it_is_found_out_without_a_trace():
    model = mlp(6, 8, 3)
    before = [value.clone() for value in model.parameters()]
    unused(model, vectors(4))
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert not any(module._forward_hooks for module in model.modules())
