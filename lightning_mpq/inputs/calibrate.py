"""The ranges of inputs, found in one pass over calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NonFiniteError
from ..network.batches import split_batch
from ..network.calibration import Calibration
from ..network.isolation import isolated
from ..network.layer_kinds import float_class
from ..network.named_weights import named_layers
from ..network.tokens import real_tokens, token_mask, weights_of_inputs
from ..policy import BitPolicy
from ..schemes import InputScheme
from ..tools.distributed import gather, on_rank_zero
from ..tools.finite import all_finite
from ..tools.warning import warn
from .histogram import InputHistogram, merged
from .loss_gradients import LossGradients
from .quantizer import InputRange
from .range_search import best_range
from .same_tensors import sharing, values_of
from .sites import input_sites, inputs_changed, refusal

InputRanges = Mapping[tuple[str, InputScheme], InputRange]
"""(layer, scheme) to the range of its inputs."""
_CHUNK = 32
"""Samples that gradients are kept of at once."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def input_ranges(calibration: Calibration, wanted: Mapping[str, Iterable[InputScheme]]) -> InputRanges:
    """Find the ranges of inputs in one pass over the batches, those of all processes.

    What is least, where a scheme clips by squared error, is what rounding does to the loss and to the layer's output,
    as far as errors of single inputs are independent: squared errors of values count by the mean of two weights, each
    of mean 1. One is the square of the loss's gradient, the diagonal of the Fisher information; it is left out where it
    cannot be had. The other, since a few samples do not show all that the loss reacts to, is the sum of the squared
    weights of the layer that an input channel is multiplied with; of a Linear layer over the squared size of the
    token's output, where that is above the median (see `weights_of_inputs`). All calls of a layer in a pass count;
    tokens that a batch's ``attention_mask`` hides do not.

    Args:
        calibration: The float model, left as it was, and its batches; not touched if no scheme needs a range.
        wanted: Layer name to the schemes that its inputs may have.

    Returns:
        The range for each layer and each of its schemes that stores one.

    Raises:
        ValueError: If inputs cannot be quantized so, there is no batch, or a layer is never called on it.
        NonFiniteError: If an input is NaN, infinite or beyond float32; names the layer.
    """
    schemes = {layer: list(dict.fromkeys(each)) for layer, each in wanted.items()}
    layers, sites = named_layers(calibration.model, remove_duplicate=False), input_sites(calibration.model)
    for layer, each in schemes.items():
        for scheme in each:
            if said := refusal(layer, layers.get(layer), sites, scheme):
                raise ValueError(said)
    searched = {layer: found for layer, each in schemes.items() if (found := [s for s in each if s.needs_range])}
    if not searched:
        return {}
    histograms = input_histograms(calibration, {layer: layers[layer] for layer in searched})
    if unseen := [layer for layer, histogram in histograms.items() if not histogram.seen]:
        raise ValueError(
            f"The inputs of {', '.join(unseen)} were not seen on the calibration batches, or only as integers or at "
            "tokens that attention_mask hides, so that their range is not known. Calibrate on batches of "
            "floating-point numbers that reach these layers, or keep their inputs in float."
        )
    largest = {layer: max(-histogram.low, histogram.high) for layer, histogram in histograms.items()}
    if beyond := [layer for layer, value in largest.items() if value > torch.finfo(torch.float32).max]:
        raise NonFiniteError(
            f"The inputs of the layer {beyond[0]!r} reach {largest[beyond[0]]:.3g}, and steps of quantized inputs are "
            "stored in float32. Scale them down in front of the layer, or keep its inputs in float."
        )
    if zeros := [layer for layer, histogram in histograms.items() if not histogram.reach]:
        warn(
            f"The inputs of {', '.join(zeros)} are zero in all calibration batches: any other value will be rounded to "
            "whole numbers from 0 on. Calibrate on batches that activate these layers."
        )
    return on_rank_zero(
        lambda: {
            (layer, scheme): best_range(histograms[layer], scheme)
            for layer, each in searched.items()
            for scheme in each
        }
    )


def ranges_of_policy(
    calibration: Calibration, policy: BitPolicy, known: InputRanges | None = None
) -> dict[str, InputRange]:
    """Return layer name to the range of its inputs, for all of a policy that store one; missing ones are found."""
    schemes = {layer: scheme for layer, scheme in policy.inputs().items() if scheme.needs_range}
    missing = {layer: [scheme] for layer, scheme in schemes.items() if (layer, scheme) not in (known or {})}
    found = {**(known or {}), **input_ranges(calibration, missing)}
    return {layer: found[layer, scheme] for layer, scheme in schemes.items()}


def input_histograms(calibration: Calibration, layers: Mapping[str, nn.Module]) -> dict[str, InputHistogram]:
    """Return what the inputs of layers look like over the batches of all processes, in one pass.

    Layers that always read the same values are told the same, in which each of them counts by its weights: for one
    scheme they get one range, and a runtime quantizes the tensor once.
    """
    found, by_loss = ({layer: InputHistogram() for layer in layers} for _ in range(2))
    gradients = LossGradients(calibration)
    read: dict[str, list[tuple[int, int]]] = {layer: [] for layer in layers}
    weights = {layer: channel_weights(module) for layer, module in layers.items()}
    mask: Tensor | None = None
    number = 0

    def see(layer: str, inputs: Tensor) -> Tensor:
        if not all_finite(inputs):
            raise NonFiniteError(f"The inputs of the layer {layer!r} are NaN or infinite in batch {number}.")
        read[layer].append(values_of(inputs))
        rows, module = counted(layer, inputs.detach()), layers[layer]
        of_tokens = weights_of_inputs(module, rows)[:, None] if isinstance(module, nn.Linear) else 1.0
        found[layer].add(rows, weights[layer] * of_tokens)
        return gradients.tapped(layer, inputs)

    def counted(layer: str, values: Tensor) -> Tensor:
        kept = real_tokens(values, mask) if isinstance(layers[layer], nn.Linear) else values
        return channels_last(layers[layer], kept)

    def forward(batch_number: int, batch: Any) -> None:
        nonlocal mask, number
        number = batch_number
        for chunk in split_batch(batch, _CHUNK):
            mask = token_mask(chunk)
            for layer, inputs, gradient in gradients.of(chunk, number):
                by_loss[layer].add(counted(layer, inputs), counted(layer, gradient).float().square())

    with inputs_changed(layers, see), isolated(calibration.model):
        calibration.each(forward, "finding the ranges of inputs")
    first, *others = gather((found, by_loss))
    for other in others:
        for own, theirs in zip(first, other, strict=True):
            for layer, histogram in theirs.items():
                own[layer].merge(histogram)
    return {
        layer: merged([_of_mean_one([each[reader] for reader in together]) for each in first])
        for layer, together in sharing(read).items()
    }


def _of_mean_one(histograms: Sequence[InputHistogram]) -> InputHistogram:
    """Return what several have counted together, as parts of all."""
    found = merged(histograms)
    total = float(found.counts.sum())
    return found.scaled(1 / total) if total > 0 else found


def channels_last(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return the inputs of a layer as [positions, channels]."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, inputs.shape[-1])
    unbatched = inputs.dim() == len(layer.kernel_size) + 1  # type: ignore[arg-type]
    return inputs.movedim(0 if unbatched else 1, -1).flatten(0, -2)


def channel_weights(layer: nn.Module) -> Tensor:
    """Return sums of the squared weights that each input channel is multiplied with, of mean 1; ones if all are 0."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    squares = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).square()
    if float_class(layer) in _TRANSPOSED:
        sums = squares.flatten(1).sum(1)
    else:
        groups = int(getattr(layer, "groups", 1))
        sums = squares.flatten(2).sum(2) if squares.dim() > 2 else squares
        sums = sums.unflatten(0, (groups, -1)).sum(1).flatten()
    mean = sums.mean()
    return sums / mean if 0 < float(mean) < float("inf") else torch.ones_like(sums)
