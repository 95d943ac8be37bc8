"""Dense float64 references for quantized inputs: the derivative by what each call of each layer is given."""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn

from lightning_mpq.groups.candidates import Candidate
from lightning_mpq.groups.groups import LayerGroups
from lightning_mpq.inputs.sites import input_sites
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.rounding.independent import round_candidates
from lightning_mpq.rounding.rounded_weights import RoundedWeights
from lightning_mpq.schemes import InputScheme, LayerScheme

INPUTS = (InputScheme(4), InputScheme(6, symmetric=True))


def joint_candidates(
    model: nn.Module, groups: LayerGroups, candidates: Sequence[Candidate], inputs: Sequence[object] = INPUTS
) -> tuple[Candidate, ...]:
    """Return each candidate with inputs in float and, where they can be, with every scheme of inputs."""
    sites = input_sites(model)
    members = {group.name: group.layers for group in groups}
    found = []
    for candidate in candidates:
        can = all(layer in sites for layer in members[candidate.group])
        for scheme in ("float", *inputs) if can else ("float",):
            layer_scheme = LayerScheme(candidate.scheme.weight, scheme)  # type: ignore[arg-type]
            found.append(Candidate(candidate.group, layer_scheme, candidate.stored_bits))
    return tuple(found)


def rounded_jointly(
    model: nn.Module, data: Sequence[object], groups: LayerGroups, candidates: Sequence[Candidate]
) -> RoundedWeights:
    """Return candidates, rounded to nearest, with the ranges of their inputs."""
    return round_candidates(model, Calibration(model, data), groups, candidates, best_grid=False)


def levels(x: Tensor, scheme: InputScheme, rounded: RoundedWeights, layer: str) -> Tensor:
    """Round by the formula, in the type of x."""
    found = rounded.inputs[layer, scheme]
    codes = (torch.round(x / found.scale) + found.zero_point).clamp(0, 2**scheme.bits - 1)
    return (codes - found.zero_point) * found.scale


def dense_input_changes(
    model: nn.Module,
    inputs: Tensor,
    groups: LayerGroups,
    candidates: Sequence[Candidate],
    rounded: RoundedWeights,
) -> Tensor:
    """Return ``d outputs / d inputs of layers`` times ``Q(x) - x``, [N, outputs, K]; zero for inputs in float."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    sites = {name: layer for name, layer in input_sites(model).items() if name in dict(model.named_modules())}
    handles = []
    for name, layer in sites.items():

        def hook(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> tuple[Tensor, ...]:
            moved = torch.zeros_like(args[0]).requires_grad_()
            calls.append((name, args[0].detach(), moved))
            return (args[0] + moved, *args[1:])

        handles.append(layer.register_forward_pre_hook(hook))
    try:
        outputs = model.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    members = {group.name: group.layers for group in groups}
    flat = outputs.flatten(1)
    found = torch.zeros(*flat.shape, len(candidates), dtype=flat.dtype)
    for sample, output in product(range(flat.shape[0]), range(flat.shape[1])):
        moved = [e for _, _, e in calls]
        slopes = torch.autograd.grad(flat[sample, output], moved, retain_graph=True, allow_unused=True)
        for (name, x, _), slope in zip(calls, slopes, strict=True):
            for index, candidate in enumerate(candidates):
                scheme = candidate.scheme.quantized_input
                if slope is not None and scheme is not None and name in members[candidate.group]:
                    change = levels(x, scheme, rounded, name) - x
                    found[sample, output, index] += (slope * change).sum().detach()
    return found
