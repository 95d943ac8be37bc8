"""What weights of recurrent layers are multiplied with, as far as it can be seen from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..network.hooks import first_argument, hooked
from ..network.layer_calls import LayerCall
from ..network.named_weights import held_by
from ..network.tokens import real_tokens

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""Layers whose weights are multiplied within them."""


def recurrence_watched(
    layers: Mapping[str, nn.Module],
    on_call: Callable[[LayerCall, Tensor], Tensor],
    mask_of_batch: Callable[[], Tensor | None],
) -> AbstractContextManager[None]:
    """Report what recurrent layers multiply with their weights, as far as their inputs and outputs show it.

    Args:
        layers: Name to view of a weight of such a layer.
        on_call: Called with each use; its output is not known.
        mask_of_batch: Returns which tokens of the present batch count, as `token_mask` does.
    """

    def report(
        name: str, attribute: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        of_cell = isinstance(module, nn.RNNCellBase)
        inputs = first_argument(args, kwargs)
        if of_cell:
            vectors = _cell_inputs(module, attribute, inputs, state)
        else:
            vectors = _layer_inputs(module, attribute, inputs, state, output, mask_of_batch())
        for part in vectors:
            on_call(LayerCall(name, part), part)

    owners = {name: held_by(layer) for name, layer in layers.items()}
    hooks = [(owner, partial(report, name, attribute)) for name, (owner, attribute) in owners.items()]
    return hooked(after=hooks, with_kwargs=True)


def _cell_inputs(cell: nn.Module, attribute: str, inputs: Tensor, state: Any) -> list[Tensor]:
    """Return what a weight of a recurrent cell is multiplied with."""
    if attribute == "weight_ih":
        return [inputs]
    if state is None:
        return []  # zeros
    return [state[0] if isinstance(state, tuple) else state]


def _layer_inputs(
    module: nn.Module, attribute: str, inputs: Any, state: Any, output: Any, mask: Tensor | None
) -> list[Tensor]:
    """Return what a weight of LSTM, GRU or RNN is multiplied with at tokens that count; nothing of what stays inside.

    The hidden states before each step are the outputs of the last layer, moved by a step, and the first state.
    """
    assert isinstance(module, nn.RNNBase)
    reverse = attribute.endswith("_reverse")
    if attribute.removesuffix("_reverse") == "weight_ih_l0":
        if isinstance(inputs, PackedSequence):
            return [inputs.data]
        return [real_tokens(inputs if module.batch_first or inputs.dim() < 3 else inputs.movedim(1, 0), mask)]
    last = attribute.removesuffix("_reverse") == f"weight_hh_l{module.num_layers - 1}"
    if not last or isinstance(inputs, PackedSequence):
        return []
    directions = 2 if module.bidirectional else 1
    steps = output[0].movedim(1, 0) if module.batch_first and inputs.dim() == 3 else output[0]
    steps = steps.unflatten(-1, (directions, -1))[..., int(reverse), :]
    counts = None if mask is None or steps.dim() < 3 else mask.T.to(steps.device)
    if counts is not None and counts.shape != steps.shape[:2]:
        counts = None
    before = steps[1:] if reverse else steps[:-1]
    found = [before if counts is None else before[counts[:-1] if reverse else counts[1:]]]
    if state is not None:
        first = (state[0] if isinstance(state, tuple) else state)[directions * (module.num_layers - 1) + int(reverse)]
        found.append(first if counts is None else first[counts[-1 if reverse else 0]])
    return found
