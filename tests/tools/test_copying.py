"""Copies of models that hold on to functions of their own."""

import functools

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn

from lightning_mpq.tools.copying import copied

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


class Net(L.LightningModule):
    """Computes with one layer; its result is twice that of the layer's weights if these are doubled."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.layer(x)


class KeepsOnItself(Net):
    """Takes what its layer computed from where a hook has put it."""

    def __init__(self):
        super().__init__()
        self.kept = None
        self.layer.register_forward_hook(lambda layer, given, outputs: setattr(self, "kept", outputs))

    def forward(self, x):
        self.layer(x)
        return self.kept


class KeepsInDict(Net):
    def __init__(self):
        super().__init__()
        kept = self.kept = {}

        def keep(layer, given, outputs):
            kept["layer"] = outputs

        self.layer.register_forward_hook(keep)

    def forward(self, x):
        self.layer(x)
        return self.kept["layer"]


class WrapsItsForward(Net):
    def __init__(self):
        super().__init__()
        own = self.forward
        through = lambda x: own(x)  # noqa: E731
        self.forward = lambda x: through(x)


class BindsItsForward(Net):
    def __init__(self):
        super().__init__()
        self.forward = functools.partial(Net.forward, self)


def compiled():
    return from_compiled(torch.compile(Net(), backend="eager"))


@pytest.mark.parametrize("make", [Net, KeepsOnItself, KeepsInDict, WrapsItsForward, BindsItsForward, compiled])
def test_a_copy_computes_with_its_own_weights_and_leaves_the_original(make):
    model = make()
    expected = model(X).detach().clone()  # which may keep tensors with a graph
    twin = copied(model)
    assert twin.layer.weight is not model.layer.weight
    with torch.no_grad():
        twin.layer.weight.mul_(2)
        torch.testing.assert_close(twin(X), 2 * expected)
        torch.testing.assert_close(model(X), expected)
    twin(X).sum().backward()
    assert model.layer.weight.grad is None
    assert twin.layer.weight.grad is not None


def test_functions_that_refer_to_nothing_of_the_model_stay_the_same():
    seen = []
    model = Net()
    model.layer.register_forward_hook(lambda layer, given, outputs: seen.append(1))
    twin = copied(model)
    assert list(twin.layer._forward_hooks.values()) == list(model.layer._forward_hooks.values())
    twin(X)
    assert seen == [1]


def test_what_is_shared_stays_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    twin = copied(model)
    assert twin[1].weight is twin[0].weight
    assert twin[0].weight is not model[0].weight
