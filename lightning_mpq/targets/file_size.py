"""What a target's file takes beside the weights that are decided about, measured by writing it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from ..allocation import Budget
from ..export.example_inputs import ExampleInputs, Examples
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..modules import pack_model, restore_layers
from ..policy import BitPolicy
from ..tools.clean_up import afterwards
from .base import Target
from .record import files_at

_SLACK = 64
"""Bytes a layer by which names, sizes and schemes as text may differ from those of the files that were written."""


def with_file_rest(
    budget: Budget,
    target: Target,
    model: nn.Module,
    groups: Sequence[LayerGroup],
    candidates: Sequence[Candidate],
    example_inputs: Examples | ExampleInputs,
) -> Budget:
    """Return a budget that knows what a file holds beside candidates, where its bounds need that; else as it is.

    One file is written for each grid and granularity that are offered, all groups having their widest candidate of
    these, and one of as many schemes as can be; the largest rest counts, and a few bytes a layer for what texts may
    differ by.

    Args:
        budget: The budget.
        target: The target.
        model: The float model; it is left as it was.
        groups: Its groups.
        candidates: What they are offered, at the target's prices.
        example_inputs: What ``forward`` takes.

    Raises:
        ValueError: If the target cannot write such a model, or candidates quantize inputs.
    """
    if not budget.needs_file_rest:
        return budget
    if any(candidate.scheme.quantized_input is not None for candidate in candidates):
        raise ValueError(
            "file_bytes is counted for layers whose inputs stay in float, and some candidates quantize theirs. Bound "
            "bytes instead, and give export_for most_bytes=."
        )
    inputs = ExampleInputs.of(example_inputs)
    rests = [_rest(target, model, policy, inputs) for policy in _references(groups, candidates)]
    return replace(budget, file_rest=max(rests) + _SLACK * sum(len(group.layers) for group in groups))


def _references(groups: Sequence[LayerGroup], candidates: Sequence[Candidate]) -> Iterator[BitPolicy]:
    """Yield a policy of the candidates of most bytes for each grid and granularity, and one of many schemes."""
    own = [[c for c in candidates if c.group == group.name] for group in groups]
    choices = []
    for kind in dict.fromkeys(map(_kind, candidates)):
        of_kind = [[c for c in mine if _kind(c) == kind] or mine for mine in own]
        choices.append([max(mine, key=lambda candidate: candidate.stored_bits) for mine in of_kind])
    choices.append([mine[-1 - number % len(mine)] for number, mine in enumerate(own)])
    for chosen in choices:
        schemes = {c.group: replace(c.scheme.weight, clip="absmax", rounding="nearest") for c in chosen}
        yield BitPolicy(schemes, {group.name: group.layers for group in groups})


def _kind(candidate: Candidate) -> tuple[str, object]:
    weight = candidate.scheme.weight
    return weight.grid, weight.granularity


def _rest(target: Target, model: nn.Module, policy: BitPolicy, inputs: ExampleInputs) -> int:
    """Return the bytes of a file without codes, scales and zero points."""
    floats = pack_model(model, policy)
    with afterwards(lambda: restore_layers(model, floats)), TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        target.write(model, path, inputs)
        everything = sum(size for size, _ in files_at(path).values())
        return everything - sum(stored.bytes for stored in target.read(path).values())
