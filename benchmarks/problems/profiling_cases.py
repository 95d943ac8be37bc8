"""Untrained networks with a batch each, for what a profile costs: that does not depend on the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_mpq import Categorical, find_groups, make_candidates
from lightning_mpq.demo.resnet import ResNet
from lightning_mpq.groups.candidates import Candidate

from .default_schemes import default_scheme
from .language_model import VOCABULARY, LanguageModel

WIDTHS = tuple(range(2, 9))


@dataclass(frozen=True)
class ProfilingCase:
    """A network, a batch, and what its outputs mean.

    Attributes:
        model: The network, in eval mode.
        inputs: [samples, ...].
        targets: Classes, [samples] or [samples, tokens].
        likelihood: Of the targets.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    likelihood: Categorical

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of the same samples in other orders, which no cache takes for one."""
        return [(self.inputs.roll(shift, 0), self.targets.roll(shift, 0)) for shift in range(count)]

    def candidates(self, widths: Iterable[int] = WIDTHS) -> tuple[Candidate, ...]:
        """Return one candidate for each layer and width, rounded to nearest: no rounding is timed."""
        return make_candidates(find_groups(self.model), schemes=[default_scheme(bits) for bits in widths])


def profiling_case(name: str) -> ProfilingCase:
    """Return a case by name: ``"resnetN"`` of depth N, or ``"transformerN"`` of N blocks."""
    torch.manual_seed(0)
    if name.startswith("transformer"):
        ids = torch.randint(0, VOCABULARY, (8, 65))
        blocks = LanguageModel(int(name.removeprefix("transformer"))).eval()
        return ProfilingCase(blocks, ids[:, :-1], ids[:, 1:], Categorical(class_dim=-1))
    network = ResNet(depth=int(name.removeprefix("resnet"))).eval()
    return ProfilingCase(network, torch.randn(64, 1, 28, 28), torch.randint(0, 10, (64,)), Categorical())


def task_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy of a batch of such a case, in nats."""
    return cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())
