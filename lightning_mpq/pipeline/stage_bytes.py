"""How many bytes the stages of a job take, by the sizes of layers and of what a batch takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.layer_kinds import row_parts, rows_and_columns
from ..network.named_weights import named_layers
from ..quantizers import InputMoment

_SIDE_BY_SIDE = 2**22
"""Weights that are rounded side by side."""
_SOLVED_AGAIN = 768
"""Columns in all that are solved again for each row, one range at least: see `search_with_feedback`."""
_ONCE, _EACH = 3.5, 3.1
"""Copies in float32 of what is rounded side by side: whatever is tried, and for each range that is solved again. Fitted
to Llama shapes of 10 and 30 million weights."""
LIBRARIES = 28 * 2**20
"""What libraries take once they work, and memory that lies between what is used: measured, on Linux."""
_CHUNK = 2**25
"""Bytes of perturbations that are made at once, if one takes no more."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and its candidates, in bytes where nothing else is said.

    Attributes:
        model: The model.
        model_bytes: Its parameters and buffers.
        weights: Number of weights that are offered candidates.
        largest: Number of those of the largest layer.
        columns: Its columns.
        element: Of one of its weights.
        schemes: How many the largest layer is offered at most, of each grid.
        candidates: How many there are in all.
        stored_bytes: Of all rounded candidates, at their true widths.
        widest: Name of the layer with the largest moment; None if no scheme needs one.
        moment_bytes: Of that moment.
        all_moments: Of all moments.
        room: What moments take together at most.
        cubes: Sum of the cubes of all layers' columns.
    """

    model: nn.Module = field(repr=False)
    model_bytes: int
    weights: int
    largest: int
    columns: int
    element: int
    schemes: int
    candidates: int
    stored_bytes: int
    widest: str | None
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
        moments, cubes, schemes, stored = dict[str, int](), 0.0, 0, 0
        for group in groups:
            kinds = {str(_without_grid(c)): c.stored_bits for c in by_group[group.name]}
            stored += sum(kinds.values()) // 8
            schemes = max(schemes, len(kinds))
            if any(candidate.scheme.weight.needs_inputs for candidate in by_group[group.name]):
                moments |= {layer: InputMoment.bytes_of_layer(named[layer]) for layer in group.layers}
                cubes += sum(rows_and_columns(named[n])[1] ** 3.0 * row_parts(named[n]) for n in group.layers)
        owners = {id(w): (w, named[n]) for group in groups for n in group.layers for w in _weight(named[n])}
        weights = [weight for weight, _ in owners.values()]
        largest, owner = max(owners.values(), key=lambda pair: pair[0].numel())
        widest = max(moments, key=moments.__getitem__, default=None)
        return cls(
            model,
            sum({id(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}.values()),
            sum(weight.numel() for weight in weights),
            largest.numel(),
            rows_and_columns(owner)[1],
            largest.element_size(),
            schemes,
            len(candidates),
            stored,
            widest,
            0 if widest is None else moments[widest],
            sum(moments.values()),
            room,
            cubes,
        )

    def round_bytes(self, forward: int) -> int:
        """Return what `round_candidates` takes beside the model and what it returns."""
        moments = min(self.all_moments, max(self.room, self.moment_bytes))
        again = max(1, _SOLVED_AGAIN // self.columns)
        side_by_side = int(4 * (_ONCE + _EACH * again) * min(self.schemes * self.largest, _SIDE_BY_SIDE))
        one_layer = 2 * self.moment_bytes + (self.schemes + 4) * self.largest + side_by_side
        return moments + max(forward, one_layer)

    def profile_bytes(self, backward: int) -> int:
        """Return what `profile` takes beside the model and the candidates."""
        one = self.largest * self.element
        return backward + 2 * max(_CHUNK, one) + max(4 * self.element * 2**20, one) + 2 * self.largest

    def allocate_bytes(self) -> int:
        """Return what `allocate` takes beside the model and the candidates."""
        return 8 * 6 * self.candidates**2

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
        one_layer = 8 * self.moment_bytes + 16 * self.largest
        return self.model_bytes + codes + max(packed, 2 * held + one_layer)


def _weight(layer: nn.Module) -> Iterator[Tensor]:
    if isinstance(layer.weight, Tensor):
        yield layer.weight


def _without_grid(candidate: Candidate) -> tuple[object, ...]:
    scheme = candidate.scheme.weight
    return scheme.bits, scheme.granularity, scheme.rounding, scheme.clip
