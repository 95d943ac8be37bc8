"""Repair after quantization: BatchNorm statistics that fit the quantized weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .calling import forward_batch


def batchnorm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the normalisation layers that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.running_mean is not None
    }


def reestimate_batchnorm(
    model: nn.Module,
    batches: Iterable[Any],
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
) -> int:
    """Replace running mean and variance of every BatchNorm layer by their averages over batches.

    Rounding shifts and stretches what a layer puts out; the statistics of the float network then no longer
    normalise it. Each batch counts the same, as in ``torch.optim.swa_utils.update_bn``; unlike there, all
    other layers stay in evaluation mode, so that dropout does not blur the statistics.

    Args:
        model: Module in any mode; modes are restored.
        batches: Calibration batches.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        How many layers were re-estimated; 0 if the model has none.

    Raises:
        ValueError: If there is no batch. Statistics are then, and after any other error, as they were.
    """
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    with _statistics_kept_on_error(layers), _only_these_in_training(model, layers), torch.no_grad():
        for layer in layers.values():
            layer.reset_running_stats()
        count = 0
        for count, batch in enumerate(batches, start=1):  # noqa: B007 - counted after the loop
            forward_batch(model, batch, forward_fn, number=count)
        if count == 0:
            raise ValueError("BatchNorm statistics need at least one calibration batch, got none.")
    return len(layers)


@contextmanager
def _statistics_kept_on_error(layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Put the running statistics back if the block fails."""
    saved: dict[str, dict[str, Tensor]] = {
        name: {key: value.clone() for key, value in layer.named_buffers(recurse=False)}
        for name, layer in layers.items()
    }
    try:
        yield
    except BaseException:
        for name, layer in layers.items():
            for key, value in layer.named_buffers(recurse=False):
                value.copy_(saved[name][key])
        raise


@contextmanager
def _only_these_in_training(model: nn.Module, layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Evaluation mode for all but the given layers, which average cumulatively; everything restored."""
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    model.eval()
    for layer in layers.values():
        layer.train()
        layer.momentum = None  # torch's name for a cumulative average
    try:
        yield
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
