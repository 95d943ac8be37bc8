"""The verb `round_candidates`: every layer rounded by the float model's inputs, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..groups.candidates import Candidate, make_candidates
from ..groups.groups import LayerGroup, find_groups
from ..inputs.calibrate import InputRanges, input_ranges
from ..inputs.operands import Operands
from ..network.calibration import Calibration
from ..network.evaluator import check_finite_parameters
from ..network.forward import ForwardFn
from ..network.likelihood import Likelihood
from ..network.named_weights import named_layers
from ..network.placement import refuse_different_layers
from ..policy import BitPolicy
from ..quantizers import InputMoment, QuantizedRows
from ..schemes import InputScheme
from ..tools.distributed import on_rank_zero
from ..tools.kinds import checked_kinds
from ..tools.progress import Progress, silent
from .group_rounding import GroupRounding
from .input_moments import input_moments
from .kept_groups import KeptGroups
from .room import refuse_without_room
from .rounded_weights import RoundedWeights
from .weight_rounding import WeightRounding
from .weight_samples import weight_samples

_LEAST_BYTES = 2**26
"""What the moments of layers that are rounded by one pass may take together, or half of the weights if these are more:
a pass for each part then takes time that grows with the model and not with its square."""


@checked_kinds
@torch.inference_mode(False)  # its caller may evaluate
def round_candidates(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    groups: Sequence[LayerGroup] | None = None,
    candidates: Sequence[Candidate] | None = None,
    *,
    best_grid: bool = True,
    centred: bool = False,
    damping: float | None = None,
    likelihood: Likelihood | Literal["auto"] = "auto",
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
    kept: KeptGroups | None = None,
) -> RoundedWeights:
    """Round every layer to every scheme it is offered, by the moments of its inputs where the scheme says so.

    Where schemes quantize inputs, their ranges, and those of what residual sums and averages read, are found on the
    same batches, in passes of their own.

    The model runs over the batches in evaluation mode, and is left exactly as it was. Moments take 8 bytes times
    columns squared for each layer until it is rounded: where those of all layers take more than half of the weights,
    layers are rounded in parts, with a pass for each.

    Where torch.distributed is in use, every process calls this with its own batches: moments are summed over all of
    them, rank 0 rounds, and every process gets its codes.

    Args:
        model: The float model.
        batches: Calibration batches; not touched if no scheme needs them.
        groups: What shares a decision; default `find_groups` (model).
        candidates: What may be chosen; default `make_candidates` (groups).
        best_grid: Of candidates that differ in nothing but the grid, keep only the best for each group: the one
            with the least output error after a bit more or less per weight is accounted for at 6.02 dB per bit,
            the rate at which the error of rounding falls.
        centred: Leave out of account what a shift of mean outputs costs: right only where biases or BatchNorm
            statistics are corrected for certain.
        damping: See `ErrorFeedback.factorise`; by default as uncertain as each moment is, ``InputMoment.damping``.
        likelihood: What the outputs mean, for ranges of inputs; ``"auto"`` guesses, or does without.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        progress: Called with the fraction done and a message.
        kept: Knows groups that were rounded before, and keeps each new one at once.

    Returns:
        Rounded weights, with the candidates that are left.

    Raises:
        ValueError: If moments are needed and there is no batch, or groups and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.
        MemoryError: If there is no room for the moment of a single layer.

    Example:
        >>> from lightning_mpq import find_groups, make_candidates
        >>> net, data = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
        >>> groups = find_groups(net)
        >>> offered = make_candidates(groups, bits=[2, 4])
        >>> rounded = round_candidates(net, data.split(16), groups, offered)
        >>> len(offered), [(c.group, c.scheme.bits) for c in rounded.candidates]
        (12, [('0', 2), ('0', 4), ('2', 2), ('2', 4)])
    """
    known = None if likelihood == "auto" else likelihood
    calibration = Calibration.of(model, batches, forward_fn=forward_fn, likelihood=known)
    report = progress or silent
    refuse_different_layers(model)
    check_finite_parameters(model)
    groups = find_groups(model) if groups is None else groups
    offered = make_candidates(groups) if candidates is None else candidates
    layers = _layers(model, [layer for group in groups for layer in group.layers])
    by_group = {group.name: [each for each in offered if each.group == group.name] for group in groups}
    found = on_rank_zero(lambda: _known(kept, groups, by_group))
    left = [group for group in groups if group.name not in found]
    ranges = input_ranges(calibration, _schemes_of_inputs(groups, by_group))  # of all: some read the same tensors
    work = GroupRounding(layers, by_group, best_grid, centred, damping, kept)
    refuse_without_room(
        {
            layer: layers[layer]
            for group in left
            if any(candidate.scheme.weight.needs_inputs for candidate in by_group[group.name])
            for layer in group.layers
        }
    )
    parts = _parts(left, layers, by_group)
    for number, part in enumerate(parts):
        begin, end = (number / len(parts), (number + 1) / len(parts))
        found |= work.round(calibration, part, lambda f, m, b=begin, e=end: report(b + f * (e - b), m))  # type: ignore[misc]
    rounded = replace(_together([found[group.name] for group in groups], ranges), samples=weight_samples(layers))
    return _with_operands(calibration, rounded)


def _with_operands(calibration: Calibration, rounded: RoundedWeights) -> RoundedWeights:
    """Add what residual sums and averages read, where inputs of some layers have ranges."""
    if not rounded.inputs:
        return rounded
    seen = Operands(calibration, products=False)
    ranges = on_rank_zero(lambda: seen.offered(rounded.inputs))
    return replace(rounded, inputs={**rounded.inputs, **ranges}, operands=seen.owners)


def _known(
    kept: KeptGroups | None, groups: Sequence[LayerGroup], offered: Mapping[str, Sequence[Candidate]]
) -> dict[str, RoundedWeights]:
    """Return the groups that were rounded before, by name."""
    if kept is None:
        return {}
    found = {group.name: kept.find(group, offered[group.name]) for group in groups}
    return {name: rounded for name, rounded in found.items() if rounded is not None}


def _together(parts: Sequence[RoundedWeights], ranges: InputRanges) -> RoundedWeights:
    candidates = tuple(candidate for part in parts for candidate in part.candidates)
    rows, errors, unseen = ({}, {}, {})  # type: ignore[var-annotated]
    for part in parts:
        rows |= part.rows
        errors |= part.errors
        unseen |= part.unseen
    return RoundedWeights(candidates, rows, errors, ranges, unseen)


def _parts(
    groups: Sequence[LayerGroup], layers: Mapping[str, nn.Module], offered: Mapping[str, Sequence[Candidate]]
) -> list[list[LayerGroup]]:
    """Cut groups into parts whose moments fit into memory together; each takes a pass of its own."""
    parts: list[list[LayerGroup]] = []
    most, room = moment_room(layers.values()), 0
    for group in groups:
        size = 0
        if any(candidate.scheme.weight.needs_inputs for candidate in offered[group.name]):
            size = sum(InputMoment.bytes_of_layer(layers[layer]) for layer in group.layers)
        if not parts or size > room:
            parts.append([])
            room = most
        parts[-1].append(group)
        room -= size
    return parts


def moment_room(layers: Iterable[nn.Module]) -> int:
    """Return how many bytes the moments of layers that are rounded by one pass may take together."""
    weights = {id(layer.weight): layer.weight for layer in layers if isinstance(layer.weight, Tensor)}
    return max(_LEAST_BYTES, sum(weight.numel() * weight.element_size() for weight in weights.values()) // 2)


def _schemes_of_inputs(
    groups: Sequence[LayerGroup], offered: Mapping[str, Sequence[Candidate]]
) -> dict[str, list[InputScheme]]:
    """Return layer name to the schemes that its inputs are offered."""
    found: dict[str, list[InputScheme]] = {}
    for group in groups:
        for candidate in offered[group.name]:
            if (scheme := candidate.scheme.quantized_input) is not None:
                for layer in group.layers:
                    found.setdefault(layer, []).append(scheme)
    return found


def round_policy(
    calibration: Calibration, policy: BitPolicy, *, damping: float | None = None
) -> dict[str, QuantizedRows]:
    """Round the layers of a policy to its schemes, as `round_candidates` does; for ``pack_model(rounded=)``.

    Raises:
        ValueError: If moments are needed and there is no batch, or policy and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.
    """
    schemes = policy.weights()
    layers = _layers(calibration.model, list(schemes))
    moments: dict[int, InputMoment] = {}
    if any(scheme.needs_inputs for scheme in schemes.values()):
        moments = input_moments(calibration, layers)

    def round_all() -> dict[str, QuantizedRows]:
        rounded: dict[int, QuantizedRows] = {}
        for layer, scheme in schemes.items():
            weight = id(layers[layer].weight)
            if weight not in rounded:
                own = WeightRounding.of(layer, layers[layer], moments.pop(weight, None), False, damping)
                rounded[weight] = own.round([scheme])[0].quantized
        return {layer: rounded[id(layers[layer].weight)] for layer in schemes}

    return on_rank_zero(round_all)


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = named_layers(model, remove_duplicate=False)
    if missing := [name for name in names if name not in modules]:
        raise ValueError(f"{type(model).__name__} has no layer {missing[0]!r}; find its groups in this very model.")
    return {name: modules[name] for name in names}
