"""Repair after quantization: BatchNorm statistics that fit the quantized weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..network.batchnorm import batch_statistics, batchnorm_layers
from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..tools.clean_up import after_errors, afterwards
from ..tools.distributed import active, sum_over_ranks


class BatchNormStatistics(NamedTuple):
    """What comes in front of a BatchNorm layer.

    Attributes:
        mean: [channels].
        variance: [channels].
    """

    mean: Tensor
    variance: Tensor


def reestimate_batchnorm(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    before: Mapping[str, BatchNormStatistics] | None = None,
    *,
    forward_fn: ForwardFn | None = None,
) -> int:
    """Replace running mean and variance of every BatchNorm layer by what fits the quantized weights.

    Rounding shifts and stretches the outputs of a layer; the statistics of the float network then no longer
    normalise it. Each batch counts the same, as in ``torch.optim.swa_utils.update_bn``; unlike there, all
    other layers stay in evaluation mode, so that dropout does not blur the statistics.

    Averages over a few batches differ from those over all training data also where nothing was quantized. With
    ``before``, statistics are not replaced but moved: the mean by the difference and the variance by the ratio of
    what the same batches give after and before quantization, so that what the sample adds by chance cancels.

    Where torch.distributed is in use, every process calls this with its own batches, and all get the same averages
    over the batches of all.

    Args:
        model: Module in any mode; modes are restored.
        batches: Calibration batches.
        before: What `measure_batchnorm` returned for the float model on the same batches.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Returns:
        How many layers were re-estimated; 0 if the model has none.

    Raises:
        ValueError: If there is no batch. Statistics are then, and after any other error, as they were.
    """
    layers = batchnorm_layers(model)
    if not layers:
        return 0
    if before is not None and (missing := [name for name in layers if name not in before]):
        raise ValueError(
            f"No statistics were measured before for the BatchNorm layer {missing[0]!r}; measure this model."
        )
    stored = {name: _statistics(layer) for name, layer in layers.items()}
    with _statistics_kept_on_error(layers), batch_statistics(model, averaged=True), torch.no_grad():
        for layer in layers.values():
            layer.reset_running_stats()
        Calibration.of(model, batches, forward_fn=forward_fn).run("re-estimation of BatchNorm statistics")
        _average_over_ranks(layers.values())
        for name, layer in layers.items():
            if not layer.num_batches_tracked:  # never called, or never on enough values for statistics
                _set(layer, stored[name])
        if before is not None:
            for name, layer in layers.items():
                _move(layer, stored[name], before[name])
    return len(layers)


def measure_batchnorm(
    model: nn.Module, batches: Iterable[Any] | Calibration, *, forward_fn: ForwardFn | None = None
) -> dict[str, BatchNormStatistics]:
    """Return the statistics that `reestimate_batchnorm` would set, by layer; the model is left as it was.

    Args:
        model: The float model, before it is quantized.
        batches: Calibration batches.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.

    Raises:
        ValueError: If there is no batch.
    """
    layers = batchnorm_layers(model)
    saved = save_statistics(layers)
    with afterwards(lambda: restore_statistics(layers, saved)):
        reestimate_batchnorm(model, batches, forward_fn=forward_fn)
        return {name: _statistics(layer) for name, layer in layers.items()}


def _average_over_ranks(layers: Iterable[_BatchNorm]) -> None:
    """Let cumulative averages be those of all processes, each batch counting the same."""
    if not active():
        return
    for layer in layers:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        calls = sum_over_ranks(layer.num_batches_tracked)
        share = layer.num_batches_tracked.double() / calls
        for average in (layer.running_mean, layer.running_var) if calls > 0 else ():
            average.copy_(sum_over_ranks(average.double() * share))
        layer.num_batches_tracked.copy_(calls)


def _statistics(layer: _BatchNorm) -> BatchNormStatistics:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return BatchNormStatistics(layer.running_mean.clone(), layer.running_var.clone())


def _set(layer: _BatchNorm, statistics: BatchNormStatistics) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(statistics.mean)
    layer.running_var.copy_(statistics.variance)


def _move(layer: _BatchNorm, stored: BatchNormStatistics, before: BatchNormStatistics) -> None:
    """Move stored statistics by what the layer's present ones, measured after quantization, differ from those before.

    Where nothing varied before there is no ratio, and the present variance is taken.
    """
    now = _statistics(layer)
    ratio = now.variance / torch.where(before.variance > 0, before.variance, torch.ones_like(before.variance))
    variance = torch.where(before.variance > 0, stored.variance * ratio, now.variance)
    _set(layer, BatchNormStatistics(stored.mean + (now.mean - before.mean), variance))


@contextmanager
def _statistics_kept_on_error(layers: dict[str, _BatchNorm]) -> Iterator[None]:
    """Put the running statistics back if the block fails."""
    saved = save_statistics(layers)
    with after_errors(lambda: restore_statistics(layers, saved)):
        yield


def save_statistics(layers: Mapping[str, _BatchNorm]) -> dict[str, dict[str, Tensor]]:
    """Return copies of the running statistics of layers, for `restore_statistics`."""
    return {
        name: {key: value.clone() for key, value in layer.named_buffers(recurse=False)}
        for name, layer in layers.items()
    }


def restore_statistics(layers: Mapping[str, _BatchNorm], saved: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Put running statistics back as `save_statistics` found them."""
    with torch.no_grad():
        for name, layer in layers.items():
            for key, value in layer.named_buffers(recurse=False):
                value.copy_(saved[name][key])
