"""The perturbations D = Q(w) - w of all candidates, made one layer at a time and dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ...groups.candidates import Candidate
from ...groups.groups import LayerGroup
from ...network.layer_kinds import rows_to_weight, weight_rows
from ...network.named_weights import named_layers
from ...quantizers import QuantizedRows, quantize_rows
from ...rounding.rounded_weights import RoundedWeights
from ...tools.checks import shown
from ...tools.give_back import give_back
from ...tools.slices import slices
from .change import write_change

_CHUNK_BYTES = 2**24
"""Of dense perturbations of a layer that are made at once, if one takes no more."""
_GIVEN_BACK = 2**26
"""So many bytes of perturbations are made before what was freed is given back to the system."""


class Perturbations:
    """What each candidate adds to each weight; only integer codes are kept, and those within a limit.

    Attributes:
        modules: Name to layer, for all layers of all groups.
        columns: Layer name to the slice of candidates (columns of the Taylor model) of its group.
        leaders: One layer name for each distinct weight tensor: of tied layers, only the first stands here.
        count: Number of candidates K.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[LayerGroup],
        candidates: Sequence[Candidate],
        kept_bytes: int = 2**26,
        rounded: RoundedWeights | None = None,
    ) -> None:
        """Look up the layers and check that candidates, groups and model fit together.

        Args:
            model: The model that the groups were found in.
            groups: The groups, in order.
            candidates: In the order of groups, at least one for each.
            kept_bytes: Up to how many bytes of codes to keep, and an eighth of it for dense perturbations; what lies
                beyond is computed anew each time.
            rounded: The weights as they were rounded on calibration data; None to round each weight by itself.

        Raises:
            ValueError: If a layer is not in the model, or candidates and groups do not fit.
        """
        named = named_layers(model)
        self.count = len(candidates)
        self.modules: dict[str, nn.Module] = {}
        self.columns: dict[str, slice] = {}
        self._schemes = [candidate.scheme.weight for candidate in candidates]
        self._kept: dict[tuple[str, int], QuantizedRows] = {}
        self._bytes_left = kept_bytes
        self._dense: dict[str, Tensor] = {}
        self._dense_bytes_left = kept_bytes // 8
        self._made_bytes = 0
        self._rounded = rounded
        start = 0
        for group in groups:
            stop = start
            while stop < len(candidates) and candidates[stop].group == group.name:
                stop += 1
            if stop == start:
                raise ValueError(
                    f"Expected the candidates of the group {group.name!r} at position {start}, in the order of groups; "
                    f"got {shown(candidates[start].group if start < len(candidates) else 'no candidate')}."
                )
            for layer in group.layers:
                if layer not in named:
                    raise ValueError(
                        f"The model has no layer {layer!r}; pass the groups that were found in this model."
                    )
                self.modules[layer] = named[layer]
                self.columns[layer] = slice(start, stop)
            start = stop
        if start != len(candidates):
            raise ValueError(
                f"Candidate {start} is of the group {candidates[start].group!r}, out of the order of groups."
            )
        first: dict[int, str] = {}
        for layer, module in self.modules.items():
            first.setdefault(id(module.weight), layer)
        self._leader = {layer: first[id(module.weight)] for layer, module in self.modules.items()}
        self.leaders = tuple(first.values())

    @property
    def device(self) -> torch.device:
        """Where the first quantized weight lies; batches go there."""
        return self.weight(self.leaders[0]).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the first quantized weight."""
        return self.weight(self.leaders[0]).dtype

    def weight(self, layer: str) -> Tensor:
        """Return the float weight of a layer, detached."""
        weight = self.modules[layer]._parameters["weight"]
        assert weight is not None
        return weight.detach()

    def tied(self, layer: str) -> list[str]:
        """Return all layers that use the weight of ``layer``, itself included."""
        leader = self._leader[layer]
        return [other for other, its_leader in self._leader.items() if its_leader == leader]

    def of_layer(self, layer: str) -> Tensor:
        """Return D of all B candidates of a layer's group as ``[B, *weight shape]``, in the weight's type."""
        columns = self.columns[layer]
        leader = self._leader[layer]
        if leader in self._dense:
            return self._dense[leader]
        stacked = self._stacked(layer, columns)
        size = stacked.numel() * stacked.element_size()
        if size <= self._dense_bytes_left:  # small networks would spend more time on this than on passes
            self._dense[leader] = stacked
            self._dense_bytes_left -= size
        return stacked

    def chunks(self, layer: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield the perturbations of a layer a few at a time: their columns, and D as `of_layer` returns it."""
        if self._fits(layer):
            yield self.columns[layer], self.of_layer(layer)
            return
        for part in self._few(layer, self.weight(layer).nbytes):
            yield part, self._stacked(layer, part)

    def by_rows(self, layer: str) -> Iterator[tuple[slice, Tensor]]:
        """Yield those of a large weight [rows, columns] some rows at a time: which rows, and D of all candidates."""
        weight, columns = self.weight(layer), self.columns[layer]
        for rows in slices(len(weight), _CHUNK_BYTES // ((columns.stop - columns.start) * weight[0].nbytes)):
            yield rows, self._stacked(layer, columns, rows)

    def of_rows(self, layer: str, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield those of some rows of a large weight [rows, columns], by their index: as `chunks` does."""
        for part in self._few(layer, len(rows) * self.weight(layer)[0].nbytes):
            yield part, self._stacked(layer, part, rows)

    def is_large(self, layer: str) -> bool:
        """Tell whether a layer's weight is a matrix [rows, columns] of which not all perturbations are made at once."""
        weight = self.weight(layer)
        rows = weight_rows(self.modules[layer], weight)
        return not self._fits(layer) and rows.shape == weight.shape and rows.data_ptr() == weight.data_ptr()

    def _fits(self, layer: str) -> bool:
        columns = self.columns[layer]
        return (columns.stop - columns.start) * self.weight(layer).nbytes <= _CHUNK_BYTES

    def _few(self, layer: str, size: int) -> Iterator[slice]:
        """Yield the columns of so many candidates that their perturbations, of some bytes each, are made at once."""
        columns = self.columns[layer]
        return slices(columns.stop, _CHUNK_BYTES // max(size, 1), columns.start)

    def _stacked(self, layer: str, columns: slice, rows: slice | Tensor | None = None) -> Tensor:
        """Return D of some candidates of a layer, or of some of its rows, made one by one where it will lie."""
        weight = self.weight(layer) if rows is None else self.weight(layer)[rows]
        self._made_bytes += (columns.stop - columns.start) * weight.nbytes
        if self._made_bytes > _GIVEN_BACK:
            self._made_bytes = 0
            give_back()  # else what is made and freed between activations that stay is held beside them
        stacked = weight.new_empty(columns.stop - columns.start, *weight.shape)
        for place, index in zip(stacked, range(columns.start, columns.stop), strict=True):
            if rows is None:
                self._write(layer, index, place)
            else:
                write_change(self._quantized(self._leader[layer], index, rows), weight, place)
        return stacked

    def of_candidate(self, index: int) -> dict[str, Tensor]:
        """Return D of one candidate for each distinct weight it touches, by leading layer."""
        touched = [layer for layer in self.leaders if self.columns[layer].start <= index < self.columns[layer].stop]
        found = {layer: torch.empty_like(self.weight(layer)) for layer in touched}
        for layer, place in found.items():
            self._write(layer, index, place)
        return found

    def _write(self, layer: str, index: int, place: Tensor) -> None:
        """Write D of one candidate in one layer, in the weight's type, to where it is to lie.

        The difference is that of exact numbers, since a rounding error is small beside the weight, and cast last.
        """
        leader = self._leader[layer]
        module, weight = self.modules[leader], self.weight(leader)
        quantized = self._quantized(leader, index)
        given, change = weight_rows(module, weight), weight_rows(module, place)
        if change.untyped_storage()._cdata == place.untyped_storage()._cdata:
            write_change(quantized, given, change)
        else:  # no view of the weight has its rows
            change = torch.empty_like(given)
            write_change(quantized, given, change)
            place.copy_(rows_to_weight(module, change, weight.shape))

    def _quantized(self, leader: str, index: int, rows: slice | Tensor | None = None) -> QuantizedRows:
        """Return the codes of one candidate, or some rows of them."""
        if self._rounded is not None:
            return self._rounded.of_layer(leader, self._schemes[index], rows)
        quantized = self._kept.get((leader, index))
        if quantized is None:
            own, scheme = weight_rows(self.modules[leader], self.weight(leader)), self._schemes[index]
            if rows is not None and scheme.granularity != "tensor" and own.numel() > self._bytes_left:
                return quantize_rows(own[rows], scheme)  # not all of them, to be rounded again for the next rows
            quantized = quantize_rows(own, scheme)
            size = sum(t.numel() * t.element_size() for t in (quantized.codes, quantized.scale))
            if size <= self._bytes_left:
                self._kept[leader, index] = quantized
                self._bytes_left -= size
        return quantized if rows is None else quantized.part(rows)
