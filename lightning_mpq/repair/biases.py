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

from ..network.calibration import Calibration
from ..network.forward import ForwardFn
from ..network.hooks import hooked
from ..network.isolation import isolated
from ..network.layerwise import LayerwiseForward
from ..network.lockstep import LockstepForward
from ..network.tokens import token_mask
from ..tools.clean_up import after_errors
from ..tools.distributed import errors_shared
from .output_means import MeanOutput, OutputMeans, channels_last, of_layer, sites_of_calls


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
    model: nn.Module,
    batches: Sequence[Any] | Calibration,
    target: OutputMeans,
    *,
    lockstep: bool = True,
    forward_fn: ForwardFn | None = None,
) -> BiasCorrection:
    """Shift biases so that each layer's mean output is the float model's, layer by layer in the order of calls.

    A layer is measured with all earlier layers as they are by then, quantized and corrected, so that what is
    corrected is the mean of the error as it arrives, not only the layer's own. The passes of all batches wait at each
    layer for its bias, so that one pass does for all layers (see `LockstepForward` for the memory); each irregular
    layer takes one more. Biases stay the same Parameters; a layer in front of BatchNorm statistics that are
    re-estimated later neither gains nor loses.

    Args:
        model: The quantized model; its biases are changed in place.
        batches: The batches that ``target`` was measured on.
        target: What `output_means` returned for the float model.
        lockstep: Whether the passes of all batches are held at each layer; otherwise each takes passes of its own.
        forward_fn: ``(model, batch) -> outputs``.

    Returns:
        What was done, and how to undo it.

    Raises:
        ValueError: If there is no batch, a layer has gone, or the quantized model calls layers in another order than
            the float one. Biases are then, and after any error, as they were.

    Example:
        >>> from lightning_mpq.repair.output_means import output_means
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
    calibration = Calibration.of(model, batches, forward_fn=forward_fn).listed("bias correction")
    biases: dict[str, Tensor] = {name: modules[name].bias for name in target.means}
    before = {name: bias.detach().clone() for name, bias in biases.items()}

    def undo() -> None:
        with torch.no_grad():
            for name, bias in biases.items():
                bias.copy_(before[name])

    with after_errors(undo), isolated(model), torch.no_grad():
        for irregular, names in groupby(target.means, target.irregular.__contains__):
            layers = {name: modules[name] for name in names}
            if irregular:
                _correct_one_by_one(calibration, layers, target.means)
            else:
                _correct_on_the_way(calibration, layers, target.means, lockstep)
    shifts = {name: bias.detach() - before[name] for name, bias in biases.items()}
    return BiasCorrection(shifts, dict(target.skipped), undo)


def _correct_on_the_way(
    calibration: Calibration, layers: Mapping[str, nn.Module], means: Mapping[str, Tensor], lockstep: bool
) -> None:
    """Correct layers in the order of their calls, in one pass that ends after the last of them."""
    kind: type[LockstepForward | LayerwiseForward] = LockstepForward if lockstep else LayerwiseForward
    with kind(calibration, sites_of_calls(calibration.model, layers), "after") as passes:
        for name, layer in layers.items():
            found, outputs = MeanOutput(), []
            with errors_shared():
                for stop in passes.at(name):
                    if stop is not None:  # a quantized model may take other ways than the float one
                        outputs.append(of_layer(stop.output))
                        found.add(layer, outputs[-1], stop.mask)
            if not found.counted_anywhere():
                continue
            shift = _shift_bias(layer, means[name] - found.mean(layer))
            for output in outputs:  # the passes go on with what the new bias gives
                channels_last(layer, output).add_(shift)


def _correct_one_by_one(calibration: Calibration, layers: Mapping[str, nn.Module], means: Mapping[str, Tensor]) -> None:
    """Correct each layer by a pass of its own, over all its calls."""
    sites = sites_of_calls(calibration.model, layers)
    mask: Tensor | None = None

    def forward(number: int, batch: Any) -> None:
        nonlocal mask
        mask = token_mask(batch)
        calibration.forward(batch, number)

    def add(found: MeanOutput, layer: nn.Module, module: nn.Module, args: object, output: Any) -> None:
        found.add(layer, of_layer(output), mask)

    for name, layer in layers.items():
        found = MeanOutput()
        with hooked(after=[(sites[name], partial(add, found, layer))]):
            calibration.each(forward, "bias correction")
        if found.counted_anywhere():
            _shift_bias(layer, means[name] - found.mean(layer))


def _shift_bias(layer: nn.Module, shift: Tensor) -> Tensor:
    """Add to a layer's bias in place; return what was added, in the bias's type."""
    bias = layer.bias
    assert isinstance(bias, Tensor)
    shift = shift.to(bias)
    bias.add_(shift)
    return shift
