"""How many bytes of rounded weights a job writes under ``cache_dir``: candidates, and policies rounded in sequence."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.layer_kinds import kind_of
from ..network.named_weights import named_layers
from .policy_selection import SIMPLE
from .settings import JobSettings
from .stage_bytes import without_grid

_HEADER = 800
"""Bytes beside each rounded weight, which say what it is, names of ordinary length: measured."""
_POLICIES = 1 + len(SIMPLE)
"""The solved one and the simple ones: the most that are rounded in sequence."""


def disk_bytes(
    model: nn.Module, groups: Sequence[LayerGroup], candidates: Sequence[Candidate], settings: JobSettings
) -> int:
    """Return the most that a job writes of rounded weights; 0 without ``cache_dir``.

    Policies that begin alike share the layers up to the first that differs, so that it is mostly less.
    """
    if settings.cache_dir is None:
        return 0
    layers = named_layers(model, remove_duplicate=False)
    total, widest, in_sequence = 0, 0, 0
    for group in groups:
        own = {without_grid(each): each for each in candidates if each.group == group.name}
        total += sum(each.stored_bits // 8 + _HEADER * len(group.layers) for each in own.values())
        kinds = [kind_of(layers[layer]) for layer in group.layers]
        by_inputs = [each.stored_bits for each in own.values() if each.scheme.weight.rounding == "second_order"]
        if by_inputs and not all(kind is not None and kind.operation == "lookup" for kind in kinds):
            widest += max(by_inputs)
            in_sequence += len(group.layers)
    if not settings.repair.sequential:
        return total
    if (bits := settings.budget.average_bits) is not None:
        widest = min(widest, int(bits * sum(group.weight_count for group in groups)))
    return total + _POLICIES * (widest // 8 + _HEADER * in_sequence)
