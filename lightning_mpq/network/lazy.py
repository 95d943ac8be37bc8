"""Layers whose weights get their shapes in the first forward pass: LazyLinear, LazyConv2d and others."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy


def uninitialized_layer(model: nn.Module) -> str | None:
    """Return the name of a layer that waits for its first input; None if there is none.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 2), nn.LazyLinear(4))
        >>> uninitialized_layer(net)
        '1'
    """
    for name, module in model.named_modules():
        own = (*module._parameters.values(), *module._buffers.values())
        if any(tensor is not None and is_lazy(tensor) for tensor in own):
            return name
    return None


def refuse_uninitialized(model: nn.Module) -> None:
    """Refuse a model with layers that wait for their first input.

    Raises:
        ValueError: If there is one.
    """
    if (name := uninitialized_layer(model)) is not None:
        raise ValueError(
            f"The layer {name!r} of {type(model).__name__} is not initialized yet; run the model once on a batch."
        )
