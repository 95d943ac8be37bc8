"""What weights are multiplied with on calibration batches: the input moments of second-order rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..network.calibration import Calibration
from ..network.experts import expert_weights
from ..network.isolation import isolated
from ..network.layer_calls import LayerCall, watched
from ..network.layer_kinds import kind_of
from ..network.named_weights import held_by
from ..network.tokens import real_tokens, token_mask
from ..quantizers import InputMoment
from ..tools.distributed import rank
from ..tools.finite import all_finite
from ..tools.progress import Progress
from ..tools.warning import warn
from .few_rows import say_few_rows, say_few_tokens
from .recurrence import RECURRENT, recurrence_watched
from .unseen import causes_of


def input_moments(
    calibration: Calibration, layers: Mapping[str, nn.Module], progress: Progress | None = None
) -> dict[int, InputMoment]:
    """Measure what weights are multiplied with in one pass over the batches, those of all processes.

    Tokens that a batch's ``attention_mask`` hides do not count.

    Seen are the inputs of layers, of the projections within attention, and of recurrent layers: of the first one's
    ``weight_ih`` and, by its outputs, of the last one's ``weight_hh``. Not seen are other uses of a weight, the
    layers of a recurrent stack in between, and layers that `register_layer` made known; a warning names them.

    Args:
        calibration: The model, left as it was, and its batches.
        layers: Name to layer, or view.
        progress: Called with the fraction done (0 if the number of batches is unknown) and a message.

    Returns:
        ``id(layer.weight)`` to the moment of all layers with that weight; zero or missing where nothing was.

    Raises:
        ValueError: If there is no batch.
        NonFiniteError: If an input is NaN or infinite; names the layer and the batch.
    """
    recurrent = {name: layer for name, layer in layers.items() if isinstance(held_by(layer)[0], RECURRENT)}
    known = {name: layer for name, layer in layers.items() if _operation(layer) not in ("any", "nonlinear")}
    found = {name: InputMoment.of_layer(layer) for name, layer in {**known, **recurrent}.items()}
    number, mask, first = 0, None, rank() == 0  # one batch is halved, in case that there are no others
    latest = _LatestInputs()

    def add(call: LayerCall, output: Tensor) -> Tensor:
        layer, moment = layers[call.layer], found[call.layer]
        inputs = _that_count(call, mask, _operation(layer))
        if not all_finite(inputs):
            raise NonFiniteError(f"The inputs of the layer {call.layer!r} are NaN or infinite in batch {number}.")
        if _operation(layer) != "linear" or moment.part_counts is not None or inputs.is_inference():
            moment.update(layer, inputs, output.shape, call.rows, turn=number, halved=first and number == 1)
        else:
            halved = first and number == 1
            moment.add(latest.moment(layer, call.inputs, inputs, output.shape, turn=number, halved=halved))
        return output

    def forward(batch_number: int, batch: Any) -> None:
        nonlocal number, mask
        number, mask = batch_number, token_mask(batch)
        calibration.forward(batch, number)

    with (
        watched(calibration.model, known, add),
        recurrence_watched(recurrent, add, lambda: mask),
        isolated(calibration.model),
        torch.no_grad(),
    ):
        calibration.each(forward, "rounding by the layers' inputs", progress)
    shared: dict[int, InputMoment] = {}
    for name in list(found):
        weight, moment = id(layers[name].weight), found.pop(name).over_ranks()
        shared[weight] = shared[weight].merge(moment) if weight in shared else moment
    unseen = [n for n, layer in layers.items() if id(layer.weight) not in shared or not shared[id(layer.weight)].count]
    if unseen:
        for cause, names in causes_of(calibration, {name: layers[name] for name in unseen}).items():
            warn(f"{cause}: {', '.join(names)}. Rounding to the levels nearest to the weights is what remains.")
    matrices = {name: shared[id(layer.weight)] for name, layer in layers.items() if id(layer.weight) in shared}
    by_expert = {name: m.part_counts for name, m in matrices.items() if expert_weights(held_by(layers[name])[0])}
    columns = {name: m.second.shape[-1] for name, m in matrices.items() if m.second.dim() == 3}
    say_few_rows({name: (matrices[name].count, width) for name, width in columns.items() if name not in by_expert})
    told = {name: counts for name, counts in by_expert.items() if counts is not None and name not in unseen}
    say_few_tokens({name: (counts.long().tolist(), columns[name]) for name, counts in told.items()})
    return shared


class _LatestInputs:
    """What the inputs of the latest linear layer add to moments.

    They are often those of the next one too (queries, keys and values; gate and up): one product then does for all.
    """

    def __init__(self) -> None:
        """Know none."""
        self._known: tuple[Tensor, int, InputMoment] | None = None

    def moment(
        self, layer: nn.Module, given: Tensor, inputs: Tensor, output_shape: torch.Size, *, turn: int, halved: bool
    ) -> InputMoment:
        """Return the moment of the inputs that count: the known one if the same tensor is given, and as it was."""
        if self._known is None or self._known[0] is not given or self._known[1] != given._version:
            moment = InputMoment.of_layer(layer)
            moment.update(layer, inputs, output_shape, turn=turn, halved=halved)
            self._known = given, given._version, moment
        return self._known[2]


def _that_count(call: LayerCall, mask: Tensor | None, operation: str) -> Tensor:
    """Return the inputs of a call without tokens that do not count."""
    if mask is None or operation not in ("linear", "lookup"):
        return call.inputs
    if call.tokens is not None and call.token_count == mask.numel():
        return call.inputs[mask.flatten().to(call.tokens.device)[call.tokens]]
    if call.inputs.dim() < 2:
        return call.inputs
    return real_tokens(call.samples_first(call.inputs), mask, lookup=operation == "lookup")


def _operation(layer: nn.Module) -> str:
    kind = kind_of(layer)
    return "nonlinear" if kind is None else kind.operation
