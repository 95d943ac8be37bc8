"""Rounding in sequence in models that keep something on themselves during a pass, or compute by functions that do."""

import lightning as L
import pytest
import torch
from lightning.pytorch.utilities.compile import from_compiled
from torch import nn

import lightning_mpq as mpq
from lightning_mpq.rounding.sequential import round_sequentially


class Skips(L.LightningModule):
    """Reads the output of its first layer once more behind the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        first = self.first(x)
        return self.third(self.second(first.relu()).relu() + first)


class OnItself(Skips):
    def forward(self, x):
        self.kept = self.first(x)
        return self.third(self.second(self.kept.relu()).relu() + self.kept)


class ByHook(Skips):
    def __init__(self):
        super().__init__()
        self.kept = None
        self.first.register_forward_hook(lambda layer, given, outputs: setattr(self, "kept", outputs))

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu() + self.kept)


class InList(Skips):
    def __init__(self):
        super().__init__()
        self.kept = []

    def forward(self, x):
        self.kept.append(self.first(x))
        hidden = self.second(self.kept[-1].relu()).relu()
        return self.third(hidden + self.kept.pop())


class InDictOfHook(Skips):
    def __init__(self):
        super().__init__()
        kept = self.kept = {}

        def keep(layer, given, outputs):
            kept["first"] = outputs

        self.first.register_forward_hook(keep)

    def forward(self, x):
        return self.third(self.second(self.first(x).relu()).relu() + self.kept["first"])


class InBuffer(Skips):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.kept = self.first(x)
        return self.third(self.second(self.kept.relu()).relu() + self.kept)


def compiled():
    return from_compiled(torch.compile(Skips(), backend="eager"))


POLICY = mpq.BitPolicy(dict.fromkeys(("first", "second", "third"), mpq.WeightScheme(3, rounding="second_order")))


def rounded(model, **options):
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 6, generator=generator) for _ in range(4)]
    return round_sequentially(model, batches, POLICY, **options)


@pytest.mark.parametrize("lockstep", [True, False])
@pytest.mark.parametrize("make", [OnItself, ByHook, InList, InDictOfHook, InBuffer, compiled])
def test_layers_are_rounded_as_in_a_model_that_keeps_nothing(make, lockstep):
    expected, found = rounded(Skips(), lockstep=lockstep), rounded(make(), lockstep=lockstep)
    for layer in expected:
        assert torch.equal(found[layer].codes, expected[layer].codes), layer
