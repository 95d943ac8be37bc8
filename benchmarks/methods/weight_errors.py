"""What every candidate does to its weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mpq import TaylorModel
from lightning_mpq.pipeline.temporary_packing import temporarily_packed
from lightning_mpq.rounding.rounded_weights import RoundedWeights


def weight_errors(model: nn.Module, taylor: TaylorModel, rounded: RoundedWeights | None) -> list[Tensor]:
    """Return quantized weight minus float weight of every candidate."""
    first: dict[str, int] = {}
    counts: dict[str, int] = {}
    for index, candidate in enumerate(taylor.candidates):
        first.setdefault(candidate.group, index)
        counts[candidate.group] = index - first[candidate.group] + 1
    found: dict[int, Tensor] = {}
    for step in range(max(counts.values())):
        indices = [start + min(step, counts[name] - 1) for name, start in first.items()]
        policy = taylor.policy(indices)
        before = {group.name: weight_of(model.get_submodule(group.layers[0])).detach() for group in taylor.groups}
        with temporarily_packed(model, policy, {} if rounded is None else rounded.of_policy(policy)), torch.no_grad():
            for index, group in zip(indices, taylor.groups, strict=True):
                found[index] = weight_of(model.get_submodule(group.layers[0])) - before[group.name]
    return [found[index] for index in range(len(taylor.candidates))]


def weight_of(layer: nn.Module) -> Tensor:
    """Return the weight of a layer."""
    assert isinstance(layer.weight, Tensor)
    return layer.weight
