"""Repair without BatchNorm: shift biases until the mean output of every layer is that of the float model again.

M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, "Data-Free Quantization Through Weight Equalization and Bias
Correction", ICCV 2019, arXiv:1906.04721, appendix D (empirical bias correction).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from ..network.forward import ForwardFn, forward_batch
from ..network.isolation import isolated
from ..network.lockstep import PausedPasses
from ..tools.distributed import errors_shared, gather, refuse_empty_ranks
from .output_means import (
    MeanOutput,
    OutputMeans,
    channels_last,
    hooked,
    of_layer,
    sites_of_calls,
)


@dataclass(frozen=True)
class BiasCorrection:
    """What was changed.

    Attributes:
        shifts: Layer name to what was added to its bias, [channels].
        skipped: Layer name to the reason why its bias was not corrected.
        undo: Puts the biases back.
    """

    shifts: Mapping[str, Tensor]
    skipped: Mapping[str, str]
    undo: Callable[[], None]


def correct_biases(
    model: nn.Module, batches: Sequence[Any], target: OutputMeans, forward_fn: ForwardFn | None = None
) -> BiasCorrection:
    """Shift biases so that each layer's mean output is the float model's, layer by layer in the order of calls.

    A layer is measured behind all earlier layers as they are by then, quantized and corrected, so that what is
    corrected is the mean of the error as it arrives, not only the layer's own. The passes of all batches wait at each
    layer for its bias, so that one pass does for all layers (see `PausedPasses` for the memory); each irregular layer
    takes one more. Biases stay the same Parameters; a layer in front of BatchNorm statistics that are re-estimated
    later neither gains nor loses.

    Args:
        model: The quantized model; its biases are changed in place.
        batches: The batches that ``target`` was measured on.
        target: What `output_means` returned for the float model.
        forward_fn: ``(model, batch) -> outputs``.

    Returns:
        What was done, and how to undo it.

    Raises:
        ValueError: If there is no batch, a layer has gone, or the quantized model calls layers in another order than
            the float one. Biases are then, and after any error, as they were.

    Example:
        >>> from lightning_mpq import output_means
        >>> net, data = nn.Sequential(nn.Linear(3, 2)), torch.randn(100, 3) + 1
        >>> means = output_means(net, [data])
        >>> with torch.no_grad():
        ...     _ = net[0].weight.add_(0.5)
        >>> list(correct_biases(net, [data], means).shifts)
        ['0']
        >>> torch.allclose(net(data).mean(0).double(), means.means["0"], atol=1e-5)
        True
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if missing := [name for name in target.means if getattr(modules.get(name), "bias", None) is None]:
        raise ValueError(f"Layer {missing[0]!r} had a bias in the float model, but there is none in this model.")
    refuse_empty_ranks(gather(len(batches)))
    if not len(batches):
        raise ValueError("Bias correction needs at least one calibration batch, got none.")
    biases: dict[str, Tensor] = {name: modules[name].bias for name in target.means}
    before = {name: bias.detach().clone() for name, bias in biases.items()}

    def undo() -> None:
        with torch.no_grad():
            for name, bias in biases.items():
                bias.copy_(before[name])

    try:
        with isolated(model), torch.no_grad():
            for irregular, names in groupby(target.means, target.irregular.__contains__):
                layers = {name: modules[name] for name in names}
                correct = _correct_one_by_one if irregular else _correct_on_the_way
                correct(model, batches, layers, target.means, forward_fn)
    except BaseException:
        undo()
        raise
    shifts = {name: bias.detach() - before[name] for name, bias in biases.items()}
    return BiasCorrection(shifts, dict(target.skipped), undo)


def _correct_on_the_way(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    means: Mapping[str, Tensor],
    forward_fn: ForwardFn | None,
) -> None:
    """Correct layers in the order of their calls, in one pass that ends behind the last of them."""
    with PausedPasses(model, batches, sites_of_calls(model, layers), "after", forward_fn) as passes:
        for name, layer in layers.items():
            found, outputs = MeanOutput(), []
            with errors_shared():
                for stop in passes.at(name):
                    outputs.append(of_layer(stop.output))
                    found.add(layer, outputs[-1])
            shift = _shift_bias(layer, means[name] - found.mean(layer))
            for output in outputs:  # the passes go on with what the new bias gives
                channels_last(layer, output).add_(shift)


def _correct_one_by_one(
    model: nn.Module,
    batches: Sequence[Any],
    layers: Mapping[str, nn.Module],
    means: Mapping[str, Tensor],
    forward_fn: ForwardFn | None,
) -> None:
    """Correct each layer by a pass of its own, over all its calls."""
    sites = sites_of_calls(model, layers)
    for name, layer in layers.items():
        found = MeanOutput()
        hook = partial(_add_output, found, layer)
        with errors_shared(), hooked({sites[name]: hook}):
            for number, batch in enumerate(batches, start=1):
                forward_batch(model, batch, forward_fn, number=number)
        _shift_bias(layer, means[name] - found.mean(layer))


def _add_output(found: MeanOutput, layer: nn.Module, module: nn.Module, args: object, output: Any) -> None:
    found.add(layer, of_layer(output))


def _shift_bias(layer: nn.Module, shift: Tensor) -> Tensor:
    """Add to a layer's bias in place; return what was added, in the bias's type."""
    bias = layer.bias
    assert isinstance(bias, Tensor)
    shift = shift.to(bias)
    bias.add_(shift)
    return shift
