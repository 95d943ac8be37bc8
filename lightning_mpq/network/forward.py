"""How a model is called on a batch, where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from .batches import describe_batch, inputs_of, tensors_of, to_device

ForwardFn = Callable[[nn.Module, Any], Any]
"""(model, batch) to outputs."""
LossFn = Callable[[nn.Module, Any], Tensor]
"""(model, batch) to the mean loss over the batch, a scalar."""


def forward_batch(model: nn.Module, batch: Any, forward_fn: ForwardFn | None = None, number: int = 1) -> Any:
    """Return the model's outputs on one batch.

    Args:
        model: The module.
        batch: With no ``forward_fn``: the input tensor, a mapping from arguments of ``forward`` to tensors, or a tuple
            or list whose first item is one of these. What ``forward`` does not name is left out, and so are targets
            that it does not ask for.
        forward_fn: ``(model, batch) -> outputs``.
        number: Which batch this is, from 1, for messages.

    Raises:
        TypeError: If the batch is of another kind, or `forward` does not take such an input.
    """
    batch = to_device(batch, device_of(model), copy=True)  # a forward may change its inputs, and sees them many times
    if forward_fn is not None:
        return forward_fn(model, batch)
    inputs = inputs_of(batch)
    if not isinstance(inputs, Tensor) and not (isinstance(inputs, Mapping) and tensors_of(inputs)):
        raise TypeError(
            f"Expected batch {number} to be a tensor or a mapping, or a tuple or list that begins with one, got "
            f"{describe_batch(batch)}. Pass forward_fn=lambda model, batch: ... to say how the model is called."
        )
    try:
        if isinstance(inputs, Tensor):
            return model(inputs)
        named = named_arguments(model, inputs)
        return model(**named) if named else model(inputs)
    except (torch.OutOfMemoryError, NonFiniteError):
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise TypeError(
            f"{type(model).__name__}.forward does not take the input of batch {number}, "
            f"{f'{inputs.dtype} {list(inputs.shape)}' if isinstance(inputs, Tensor) else describe_batch(inputs)}: "
            f"{error}. Pass forward_fn=lambda model, batch: ... to say how it is called."
        ) from error


TARGETS = ("labels", "label", "targets", "target", "y")
"""Names under which a mapping holds targets."""


def named_arguments(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a mapping ``forward`` takes by name; empty if it takes the mapping itself, as one argument."""
    expected = signature(getattr(model, "_orig_mod", model).forward).parameters  # of a compiled model, its own
    others = {key: value for key, value in batch.items() if key not in TARGETS}
    takes_more = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in expected.values())
    chosen = {
        key: value for key, value in others.items() if key in expected or (takes_more and isinstance(value, Tensor))
    }
    wanted = {key for key, parameter in expected.items() if parameter.default is Parameter.empty}
    given = "labels" in batch and ("labels" in expected or takes_more)
    if given and not _DECODER_INPUTS & chosen.keys() and _has_decoder(model):
        wanted.add("labels")  # of which transformers makes the decoder's inputs
    return chosen | {key: batch[key] for key in TARGETS if key in batch and key in wanted}


_DECODER_INPUTS = {"decoder_input_ids", "decoder_inputs_embeds"}


def _has_decoder(model: nn.Module) -> bool:
    """Tell whether a model is, or holds, an encoder with a decoder of transformers."""
    return any(getattr(getattr(each, "config", None), "is_encoder_decoder", False) for each in model.modules())


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device
