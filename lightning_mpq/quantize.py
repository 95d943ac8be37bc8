"""Put a policy into effect: packed layers, then repaired statistics; all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .correction import batchnorm_layers, reestimate_batchnorm
from .curvature.batches import ForwardFunction
from .modules import pack_model, restore_layers
from .policy import BitPolicy


def quantize(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | None = None,
    *,
    forward_fn: ForwardFunction | None = None,
    reestimate: bool = True,
) -> nn.Module:
    """Replace the layers that a policy names by packed ones, in place, and re-estimate BatchNorm statistics.

    Args:
        model: Float model; on an error it is left as it was.
        policy: Group to scheme, as in ``allocation.policy``.
        batches: Calibration batches; needed if the model has BatchNorm layers and ``reestimate`` is set.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        reestimate: Whether BatchNorm statistics are measured again behind the quantized weights.

    Returns:
        The same model.

    Raises:
        ValueError: If BatchNorm statistics are to be re-estimated and there are no batches, or the policy
            does not fit the model.

    Example:
        >>> from lightning_mpq.policy import WeightScheme
        >>> net = quantize(nn.Sequential(nn.Linear(4, 4)), BitPolicy({"0": WeightScheme(bits=3)}))
        >>> type(net[0]).__name__
        'PackedLinear'
    """
    if reestimate and batches is None and batchnorm_layers(model):
        raise ValueError(
            "The model has BatchNorm layers, whose statistics must be measured again behind quantized weights. "
            "Pass batches=, or reestimate=False to keep those of the float model."
        )
    apply_policy(model, policy, batches, forward_fn=forward_fn, reestimate=reestimate)
    return model


def apply_policy(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | None = None,
    *,
    forward_fn: ForwardFunction | None = None,
    reestimate: bool = True,
) -> Callable[[], None]:
    """Do what `quantize` does, and return the function that undoes it."""
    layers = batchnorm_layers(model)
    statistics = {name: {k: v.clone() for k, v in layer.named_buffers()} for name, layer in layers.items()}
    floats = pack_model(model, policy)

    def undo() -> None:
        restore_layers(model, floats)
        with torch.no_grad():
            for name, layer in layers.items():
                for key, value in layer.named_buffers():
                    value.copy_(statistics[name][key])

    try:
        if reestimate and batches is not None:
            reestimate_batchnorm(model, batches, forward_fn)
    except BaseException:
        undo()
        raise
    return undo


@contextmanager
def temporarily_quantized(
    model: nn.Module,
    policy: BitPolicy,
    batches: Iterable[Any] | None = None,
    *,
    forward_fn: ForwardFunction | None = None,
    reestimate: bool = True,
) -> Iterator[nn.Module]:
    """Quantize as `quantize` does for the time of a ``with`` block; afterwards the float model is back."""
    undo = apply_policy(model, policy, batches, forward_fn=forward_fn, reestimate=reestimate)
    try:
        yield model
    finally:
        undo()
