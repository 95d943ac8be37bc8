"""How many bytes the stages of a job take, by the sizes of layers and of what a batch takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.forward import device_of
from ..network.layer_kinds import kind_of, row_parts, rows_and_columns
from ..network.named_weights import named_layers
from ..quantizers import InputMoment
from ..quantizers.feedback_search import most_solved_again
from ..quantizers.some_rows import SIDE_BY_SIDE, rows_side_by_side
from ..rounding.room import AT_ONCE
from ..schemes import WeightScheme

_COPIES = 5
"""Copies in float32 of what is solved side by side: measured."""
_LIBRARIES = 28 * 2**20
"""What libraries take once they work, and memory that lies between what is used: measured, on Linux."""
_HALF_KERNELS = 40 * 2**20
"""What oneDNN keeps beyond that for products of 16-bit floats: code it makes for each shape, and descriptors. Measured,
more with more shapes."""
PASS_BYTES = 5 * 2**19
"""What a pass that waits keeps beside tensors: a heap of its own, and buffers of matrix products. Measured."""
_SQUARES = 24
"""Matrices of candidates by candidates, in float64: those of a Taylor model, by blocks of samples too, and half as many
that are made of them on the way to a program. Measured."""
_CHUNK, _KEPT = 2**24, 2**23
"""Bytes of perturbations that are made at once, if one takes no more, and of those that are kept."""
_PIECE = 3 * 2**21
"""Bytes of a change that is computed in float64, a few rows at a time."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its candidates, in bytes where nothing else is said.

    Attributes:
        model: The model.
        model_bytes: Its parameters and buffers.
        weights: Number of weights that are offered candidates.
        largest: Number of those of the largest layer.
        element: Of one of its weights.
        widest_weights: Number of weights of the layer with the largest moment.
        one_layer: The most that rounding one layer takes beyond its own moment.
        candidates: How many there are in all.
        stored_bytes: Of all rounded candidates, at their true widths.
        widest: Name of the layer with the largest moment; None if no scheme needs one.
        matrix_bytes: Of its mean, or a factor of it.
        moment_bytes: Of that moment.
        all_moments: Of all moments.
        room: What moments take together at most.
        cubes: Sum of the cubes of all layers' columns.
    """

    model: nn.Module = field(repr=False)
    model_bytes: int
    weights: int
    largest: int
    element: int
    widest_weights: int
    one_layer: int
    candidates: int
    stored_bytes: int
    widest: str | None
    matrix_bytes: int
    moment_bytes: int
    all_moments: int
    room: int
    cubes: float

    @classmethod
    def of(cls, model: nn.Module, groups: Sequence[LayerGroup], candidates: Sequence[Candidate], room: int) -> Sizes:
        """Look at the layers of a model."""
        named = named_layers(model, remove_duplicate=False)
        by_group: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            by_group.setdefault(candidate.group, []).append(candidate)
        moments, cubes, stored, one_layer = dict[str, int](), 0.0, 0, 0
        for group in groups:
            own = by_group[group.name]
            kinds = {without_grid(c): c for c in own}
            stored += sum(candidate.stored_bits for candidate in kinds.values()) // 8
            if by_inputs := any(candidate.scheme.weight.needs_inputs for candidate in own):
                moments |= {layer: InputMoment.bytes_of_layer(named[layer]) for layer in group.layers}
                cubes += sum(rows_and_columns(named[n])[1] ** 3.0 * row_parts(named[n]) for n in group.layers)
            schemes = [candidate.scheme.weight for candidate in kinds.values()]
            one_layer = max(one_layer, *(_bytes_to_round(named[n], schemes, by_inputs) for n in group.layers))
        owners = {id(w): w for group in groups for n in group.layers for w in _weight(named[n])}
        largest = max(owners.values(), key=Tensor.numel)
        widest = max(moments, key=moments.__getitem__, default=None)
        return cls(
            model,
            sum({id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}.values()),
            sum(weight.numel() for weight in owners.values()),
            largest.numel(),
            largest.element_size(),
            0 if widest is None else prod(rows_and_columns(named[widest])),
            one_layer,
            len(candidates),
            stored,
            widest,
            0 if widest is None else InputMoment.bytes_of_matrix(named[widest]),
            0 if widest is None else moments[widest],
            sum(moments.values()),
            room,
            cubes,
        )

    def round_bytes(self, forward: int) -> int:
        """Return what `round_candidates` takes beside the model and what it returns."""
        moments = min(self.all_moments, max(self.room, self.moment_bytes))
        return moments + max(forward, 2 * self.matrix_bytes + self.one_layer)

    def profile_bytes(self, backward: int) -> int:
        """Return what `profile` takes beside the model and the candidates."""
        one = self.largest * self.element
        return backward + max(_CHUNK, one) + one + min(_PIECE, 24 * self.largest) + 2 * self.largest + _KEPT

    def allocate_bytes(self) -> int:
        """Return what `allocate` takes beside the model and the candidates."""
        return 8 * _SQUARES * self.candidates**2

    def quantize_bytes(self, held: int, in_sequence: bool) -> int:
        """Return what `quantize` takes beside the model and the candidates.

        Args:
            held: By passes that wait at a layer, all batches of one model together.
            in_sequence: Whether layers are rounded in sequence.
        """
        packed = self.weights * 5 // 8
        if not in_sequence:
            return packed + held
        codes = self.weights
        one_layer = AT_ONCE * self.matrix_bytes + 16 * self.widest_weights
        return self.model_bytes + codes + max(packed, 2 * held + one_layer)

    def select_bytes(self, held: int) -> int:
        """Return what measuring a packed policy takes beside the model and the candidates; see `quantize_bytes`."""
        return self.weights * 5 // 8 + self.weights * self.element + held


def library_bytes(model: nn.Module) -> int:
    """Return what libraries keep for themselves while they compute with a model; a GPU's are not counted."""
    if device_of(model).type != "cpu":
        return 0
    half = any(p.is_floating_point() and p.element_size() == 2 for p in model.parameters())
    return _LIBRARIES + half * _HALF_KERNELS


def _weight(layer: nn.Module) -> Iterator[Tensor]:
    if isinstance(layer.weight, Tensor):
        yield layer.weight


def _bytes_to_round(layer: nn.Module, schemes: Sequence[WeightScheme], by_inputs: bool) -> int:
    """Return what rounding a layer takes beyond its moment: its codes, and what is computed side by side."""
    rows, columns = rows_and_columns(layer)
    weights, codes = rows * columns, len(schemes) * rows * columns
    shared = any(scheme.granularity == "tensor" for scheme in schemes)
    converted = any(w.element_size() < 4 for w in _weight(layer))
    wide = 4 * (weights if shared else min(weights, SIDE_BY_SIDE)) * converted
    kind = kind_of(layer)
    if not by_inputs or (kind is not None and kind.operation == "lookup"):
        return codes + wide + min(16 * weights, _PIECE)
    solved = 0
    for by_blocks in (False, True):
        alike = [scheme for scheme in schemes if isinstance(scheme.granularity, int) is by_blocks]
        again = sum(most_solved_again(scheme, columns) for scheme in alike)
        solved = max(solved, again * min(rows_side_by_side(alike, columns) * columns, weights))
    return codes + wide + 4 * _COPIES * solved


def without_grid(candidate: Candidate) -> tuple[object, ...]:
    """Return what tells candidates apart that are rounded: of the grids one is kept."""
    scheme = candidate.scheme.weight
    return scheme.bits, scheme.granularity, scheme.rounding, scheme.clip
