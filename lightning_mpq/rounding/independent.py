"""The verb `round_candidates`: every layer rounded by the float model's inputs, whatever becomes of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..groups.candidates import Candidate, make_candidates
from ..groups.groups import LayerGroup, find_groups
from ..inputs.calibrate import input_ranges
from ..network.calibration import Calibration
from ..network.evaluator import check_finite_parameters
from ..network.forward import ForwardFn
from ..network.layer_kinds import row_parts, weight_rows
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import InputMoment, QuantizedRows, RoundedRows, RowRounding
from ..quantizers.padding_row import check_padding_row, loses_padding_row
from ..schemes import InputScheme, WeightScheme
from ..tools.distributed import on_rank_zero
from ..tools.progress import Progress, silent
from .input_moments import input_moments
from .packed_rows import PackedRows
from .rounded_weights import RoundedWeights

_SAMPLED_WEIGHTS = 24576
"""By so many weights, in whole rows, the grid of all is chosen."""


@torch.inference_mode(False)  # its caller may evaluate
def round_candidates(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    groups: Sequence[LayerGroup] | None = None,
    candidates: Sequence[Candidate] | None = None,
    *,
    best_grid: bool = True,
    centred: bool = False,
    damping: float = 0.01,
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
) -> RoundedWeights:
    """Round every layer to every scheme it is offered, by the moments of its inputs where the scheme says so.

    Where schemes quantize inputs, their ranges are found on the same batches, in a pass of their own.

    The model runs once over the batches, whatever the number of layers and candidates, in evaluation mode, and is
    left exactly as it was. Moments take 8 bytes times columns squared for each layer until it is rounded.

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
        damping: See `ErrorFeedback.factorise`.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        progress: Called with the fraction done and a message.

    Returns:
        Rounded weights, with the candidates that are left.

    Raises:
        ValueError: If moments are needed and there is no batch, or groups and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.

    Example:
        >>> from lightning_mpq import find_groups, make_candidates
        >>> net, data = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
        >>> groups = find_groups(net)
        >>> offered = make_candidates(groups, bits=[2, 4])
        >>> rounded = round_candidates(net, data.split(16), groups, offered)
        >>> len(offered), [(c.group, c.scheme.bits) for c in rounded.candidates]
        (12, [('0', 2), ('0', 4), ('2', 2), ('2', 4)])
    """
    calibration = Calibration.of(model, batches, forward_fn=forward_fn)
    report = progress or silent
    check_finite_parameters(model)
    groups = find_groups(model) if groups is None else groups
    offered = make_candidates(groups) if candidates is None else candidates
    layers = _layers(model, [layer for group in groups for layer in group.layers])
    moments: dict[int, InputMoment] = {}
    if any(candidate.scheme.weight.needs_inputs for candidate in offered):
        moments = input_moments(calibration, layers, lambda f, m: report(f / 2, m))
    ranges = input_ranges(calibration, _schemes_of_inputs(groups, offered))
    # One rank decides for all: the least difference in arithmetic between two machines could flip a code.
    rounded = on_rank_zero(
        lambda: _round_all(
            layers, moments, groups, offered, best_grid, centred, damping, lambda f, m: report(0.5 + f / 2, m)
        )
    )
    return replace(rounded, inputs=ranges)


def _schemes_of_inputs(groups: Sequence[LayerGroup], candidates: Sequence[Candidate]) -> dict[str, list[InputScheme]]:
    """Return layer name to the schemes that its inputs are offered."""
    layers = {group.name: group.layers for group in groups}
    found: dict[str, list[InputScheme]] = {}
    for candidate in candidates:
        if (scheme := candidate.scheme.quantized_input) is not None:
            for layer in layers.get(candidate.group, ()):
                found.setdefault(layer, []).append(scheme)
    return found


def _round_all(
    layers: Mapping[str, nn.Module],
    moments: dict[int, InputMoment],
    groups: Sequence[LayerGroup],
    candidates: Sequence[Candidate],
    best_grid: bool,
    centred: bool,
    damping: float,
    report: Progress,
) -> RoundedWeights:
    """Round every layer; see `round_candidates`. Each moment is dropped once its layer is rounded."""
    kept: list[Candidate] = []
    rows: dict[tuple[str, WeightScheme], PackedRows] = {}
    errors: dict[tuple[str, WeightScheme], float] = {}
    for number, group in enumerate(groups):
        report(number / len(groups), f"round {group.name}")
        offered = _with_padding_rows([layers[layer] for layer in group.layers], group.name, candidates)
        names = {id(layers[layer].weight): layer for layer in group.layers}
        weights = {
            weight: _WeightRounding.of(layer, layers[layer], moments.pop(weight, None), centred, damping)
            for weight, layer in names.items()
        }
        best = _best_grids(offered, list(weights.values()), group.weight_count) if best_grid else offered
        schemes = list(dict.fromkeys(candidate.scheme.weight for candidate in best))
        found = {
            weight: [(PackedRows.of(result.quantized), result.error) for result in each.round(schemes)]
            for weight, each in weights.items()
        }
        kept += best
        for layer in group.layers:
            for scheme, (packed, error) in zip(schemes, found[id(layers[layer].weight)], strict=True):
                rows[layer, scheme], errors[layer, scheme] = packed, error
    return RoundedWeights(tuple(kept), rows, errors)


def _with_padding_rows(layers: Sequence[nn.Module], group: str, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of a group that leave the row of zeros of an embedding's padding as it is."""
    offered = [candidate for candidate in candidates if candidate.group == group]
    lost = [each for each in offered if any(loses_padding_row(layer, each.scheme.weight) for layer in layers)]
    if len(lost) == len(offered) and lost:
        for layer in layers:
            check_padding_row(layer, lost[0].scheme.weight)
    return [each for each in offered if each not in lost]


def round_policy(calibration: Calibration, policy: BitPolicy, *, damping: float = 0.01) -> dict[str, QuantizedRows]:
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
                own = _WeightRounding.of(layer, layers[layer], moments.pop(weight, None), False, damping)
                rounded[weight] = own.round([scheme])[0].quantized
        return {layer: rounded[id(layers[layer].weight)] for layer in schemes}

    return on_rank_zero(round_all)


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    modules = named_layers(model, remove_duplicate=False)
    if missing := [name for name in names if name not in modules]:
        raise ValueError(f"{type(model).__name__} has no layer {missing[0]!r}; find its groups in this very model.")
    return {name: modules[name] for name in names}


@dataclass(frozen=True)
class _WeightRounding:
    """One weight with the moment of its inputs, or a sample of its rows.

    Attributes:
        layer: The name of its layer, for messages.
        rows: [R, C].
        rounding: Rounds by the moment, which is factorised once for all.
        counts: [R], how often each row of an embedding was looked up; None for other layers.
    """

    layer: str
    rows: Tensor
    rounding: RowRounding
    counts: Tensor | None

    @classmethod
    def of(
        cls, name: str, layer: nn.Module, moment: InputMoment | None, centred: bool, damping: float
    ) -> _WeightRounding:
        """Take the weight of a layer; without a moment all its inputs count alike."""
        rows = weight_rows(layer).detach()
        if moment is None:
            return cls(name, rows, RowRounding(rows.new_ones(row_parts(layer), rows.shape[1])), None)
        return cls(name, rows, RowRounding(moment.form(centred), damping), moment.row_counts)

    def sample(self) -> _WeightRounding:
        """Return the same for some rows of each convolution group, or this very object if there are few.

        A few rows of a wide range may hold most of the error, so that half of the sample are those of the widest; the
        others stand for all that are left.
        """
        parts = len(self.rounding.moment)
        height, most = len(self.rows) // parts, max(2, _SAMPLED_WEIGHTS // self.rows.shape[1] // parts)
        if height <= most:
            return self
        weights = torch.ones_like(self.rows[:, 0]) if self.counts is None else self.counts.to(self.rows)
        sizes = (self.rows.amax(1) - self.rows.amin(1)).square() * weights
        order = sizes.view(parts, height).argsort(dim=1, descending=True, stable=True)
        widest, others = order[:, : most // 2], order[:, most // 2 :]
        spaced = torch.linspace(0, others.shape[1] - 1, most - most // 2, device=order.device).long()
        index = torch.cat([widest, others[:, spaced]], dim=1)
        stands_for = torch.ones_like(index, dtype=self.rows.dtype)
        stands_for[:, widest.shape[1] :] = others.shape[1] / len(spaced)
        index = (torch.arange(parts, device=index.device)[:, None] * height + index).flatten()
        return replace(self, rows=self.rows[index], counts=weights[index] * stands_for.flatten())

    def round(self, schemes: Sequence[WeightScheme]) -> list[RoundedRows]:
        """Round to several schemes; errors are relative to the mean square of the layer's output."""
        try:
            results = self.rounding.round(self.rows, schemes, self.counts)
        except ValueError as error:
            raise type(error)(f"Layer {self.layer!r}: {error}") from error
        moment = self.rounding.moment
        weights = self.rows.unflatten(0, (len(moment), -1)).to(moment.dtype)
        products = weights * moment[:, None] if moment.dim() == 2 else weights @ moment
        energy = (products * weights).sum(2).flatten()
        total = float((energy if self.counts is None else energy * self.counts).sum())
        return [result._replace(error=result.error / total if total > 0 else 0.0) for result in results]


def _best_grids(candidates: Sequence[Candidate], group: Sequence[_WeightRounding], weights: int) -> list[Candidate]:
    """Return the best among those that differ only in their grid, by a sample of rows.

    Schemes of a weight that is offered with several schemes of inputs are compared once.
    """
    first = {candidate.scheme.weight: candidate for candidate in reversed(candidates)}
    schemes = list(dict.fromkeys(candidate.scheme.weight for candidate in candidates))
    kinds = [_without_grid(scheme) for scheme in schemes]
    if len(set(kinds)) == len(kinds):
        return list(candidates)
    sampled = [each.sample().round(schemes) for each in group]
    # A bit more per weight makes steps half as wide and squared errors a quarter.
    costs = [
        sum(results[i].error for results in sampled) * 4 ** (first[scheme].stored_bits / weights - scheme.bits)
        for i, scheme in enumerate(schemes)
    ]
    best = {kind: min((i for i, own in enumerate(kinds) if own == kind), key=costs.__getitem__) for kind in kinds}
    kept = {schemes[i]: number for number, i in enumerate(best.values())}
    return sorted((c for c in candidates if c.scheme.weight in kept), key=lambda c: kept[c.scheme.weight])


def _without_grid(scheme: WeightScheme) -> tuple[object, ...]:
    return tuple(getattr(scheme, field.name) for field in fields(scheme) if field.name != "grid")
