"""Groups of layers rounded to all that they are offered, by the moments of one pass over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.calibration import Calibration
from ..quantizers import InputMoment
from ..quantizers.padding_row import check_padding_row, loses_padding_row
from ..schemes import WeightScheme
from ..tools.distributed import on_rank_zero
from ..tools.give_back import give_back
from ..tools.progress import Progress
from .input_moments import input_moments
from .kept_groups import KeptGroups
from .packed_rows import PackedRows
from .rounded_weights import RoundedWeights
from .weight_rounding import WeightRounding, best_grids


@dataclass(frozen=True)
class GroupRounding:
    """Rounds groups, a part of them at a time; see `round_candidates`.

    Attributes:
        layers: Name to layer.
        offered: Group name to its candidates.
        best_grid: See `round_candidates`.
        centred: Likewise.
        damping: Likewise.
        kept: Keeps each group once it is rounded.
    """

    layers: Mapping[str, nn.Module]
    offered: Mapping[str, Sequence[Candidate]]
    best_grid: bool
    centred: bool
    damping: float | None
    kept: KeptGroups | None

    def round(
        self, calibration: Calibration, groups: Sequence[LayerGroup], report: Progress
    ) -> dict[str, RoundedWeights]:
        """Round groups by the moments of one pass, each of which is dropped once its layer is rounded."""
        moments: dict[int, InputMoment] = {}
        if any(candidate.scheme.weight.needs_inputs for group in groups for candidate in self.offered[group.name]):
            own = {layer: self.layers[layer] for group in groups for layer in group.layers}
            moments = input_moments(calibration, own, lambda f, m: report(f / 2, m))

        def round_all() -> dict[str, RoundedWeights]:
            found = {}
            for number, group in enumerate(groups):
                report(0.5 + number / len(groups) / 2, f"round {group.name}")
                give_back()  # what other groups have freed
                rounded = self._group(group, moments)
                offered = self.offered[group.name]
                found[group.name] = rounded if self.kept is None else self.kept.keep(group, offered, rounded)
            return found

        # One rank decides for all: the least difference in arithmetic between two machines could flip a code.
        return on_rank_zero(round_all)

    def _group(self, group: LayerGroup, moments: dict[int, InputMoment]) -> RoundedWeights:
        own = [self.layers[layer] for layer in group.layers]
        offered = _with_padding_rows(own, self.offered[group.name])
        names = {id(self.layers[layer].weight): layer for layer in group.layers}
        weights, unseen = dict[int, WeightRounding](), dict[int, float]()
        for weight, layer in names.items():
            moment = moments.pop(weight, None)
            weights[weight] = WeightRounding.of(layer, self.layers[layer], moment, self.centred, self.damping)
            unseen[weight] = 1.0 if moment is None else moment.unseen_error(weights[weight].rounding.damping)
            del moment  # its sums take as much as what is made of them
        best = best_grids(offered, list(weights.values()), group.weight_count) if self.best_grid else offered
        schemes = list(dict.fromkeys(candidate.scheme.weight for candidate in best))
        found = {
            weight: [(PackedRows.of(result.quantized), result.error) for result in each.round(schemes)]
            for weight, each in weights.items()
        }
        rows: dict[tuple[str, WeightScheme], PackedRows] = {}
        errors: dict[tuple[str, WeightScheme], float] = {}
        for layer in group.layers:
            for scheme, (packed, error) in zip(schemes, found[id(self.layers[layer].weight)], strict=True):
                rows[layer, scheme], errors[layer, scheme] = packed, error
        growth = {layer: unseen[id(self.layers[layer].weight)] for layer in group.layers}
        return RoundedWeights(tuple(best), rows, errors, {}, growth)


def _with_padding_rows(layers: Sequence[nn.Module], offered: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates of a group that leave the row of zeros of an embedding's padding as it is."""
    lost = [each for each in offered if any(loses_padding_row(layer, each.scheme.weight) for layer in layers)]
    if len(lost) == len(offered) and lost:
        for layer in layers:
            check_padding_row(layer, lost[0].scheme.weight)
    return [each for each in offered if each not in lost]
