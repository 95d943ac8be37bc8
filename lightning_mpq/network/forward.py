"""How a model is called on a batch, where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import describe_batch, to_device

ForwardFn = Callable[[nn.Module, Any], Any]
"""(model, batch) to outputs."""
LossFn = Callable[[nn.Module, Any], Tensor]
"""(model, batch) to the mean loss over the batch, a scalar."""


def forward_batch(model: nn.Module, batch: Any, forward_fn: ForwardFn | None = None, number: int = 1) -> Any:
    """Return the model's outputs on one batch.

    Args:
        model: The module.
        batch: With no ``forward_fn``: the input tensor, or a tuple or list whose first item it is.
        forward_fn: ``(model, batch) -> outputs``.
        number: Which batch this is, from 1, for messages.

    Raises:
        TypeError: If the batch is of another kind, or `forward` does not take such an input.
    """
    batch = to_device(batch, device_of(model))
    if forward_fn is not None:
        return forward_fn(model, batch)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"Expected batch {number} to be a tensor, or a tuple or list that begins with one, got "
            f"{describe_batch(batch)}. Pass forward_fn=lambda model, batch: ... to say how the model is called."
        )
    try:
        return model(inputs)
    except torch.OutOfMemoryError:
        raise
    except (TypeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise TypeError(
            f"{type(model).__name__}.forward does not take the input of batch {number}, {inputs.dtype} "
            f"{list(inputs.shape)}: {error}. Pass forward_fn=lambda model, batch: ... to say how it is called."
        ) from error


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device
