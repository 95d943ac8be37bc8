"""Per-sample scores of one layer: ``<dY_m, D_b * X_m>`` for each input row m and each perturbation D_b.

A layer's operation is bilinear in weight and input, so the same number has two forms, and the cheaper one is
computed: run the operation with each perturbation as its weight, or contract input and output gradient to a
per-sample weight gradient and take its inner product with all perturbations. The second costs one operation
whatever the number of perturbations and wins once a weight is used at several positions of a sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import embedding, linear, pad

from ...network.layer_kinds import Operation, apply_weight, kind_of, weight_rows
from ...network.named_weights import held_by

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CHUNK_ELEMENTS = 2**22
"""Elements of the unfolded input or the per-sample weight gradients that are made at once (16 MiB of float32)."""


def layer_scores(
    module: nn.Module,
    inputs: Tensor,
    output_gradient: Tensor,
    perturbations: Tensor,
    extra: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Return ``<dY_m, D_b * X_m>`` for every row m along dimension 0 of the outputs.

    Args:
        module: A layer with a registered kind (`layers.LAYER_KINDS`), or a view; linear in its weight.
        inputs: X, [M, ...]: for Linear [M, ..., in], for convolutions [M, C, *spatial], for Embedding [M, ...].
        output_gradient: dY, shaped like the layer's output for ``inputs``.
        perturbations: D, [B, *weight shape].
        extra: Further positional arguments of the layer's forward.
        options: Further named arguments of it (``output_size`` of ConvTranspose).
        rows: Which rows of the weight were used, of one whose rows are multiplied with vectors; None for all.

    Returns:
        [M, B], in the type of the inputs' operation.
    """
    operation = _operation(module)
    named = dict(options or {})
    if operation == "lookup":
        return _lookup_scores(inputs, output_gradient, perturbations)
    if operation == "any":
        return _applied_scores(module, (inputs, *extra), named, output_gradient, perturbations)
    if operation == "linear":
        matrices = _as_rows(module, perturbations)
        return _product_scores(inputs, output_gradient, matrices if rows is None else matrices[:, rows])
    count, width = inputs.shape[0], perturbations.shape[0]
    positions = _positions(module, inputs, output_gradient)
    if width * positions <= width + positions:
        terms = [
            (apply_weight(module, d, inputs, *extra, **named) * output_gradient).flatten(1).sum(1)
            for d in perturbations
        ]
        return torch.stack(terms, 1)
    weights = perturbations.flatten(1)
    per_sample = max(weights.shape[1], positions * _columns(module, weights.shape[1]))
    step = max(1, _CHUNK_ELEMENTS // max(per_sample, 1))
    chunks = [
        _weight_gradients(module, inputs[i : i + step], output_gradient[i : i + step]).flatten(1) @ weights.T
        for i in range(0, count, step)
    ]
    return torch.cat(chunks)


def _as_rows(module: nn.Module, perturbations: Tensor) -> Tensor:
    """Return perturbations as [B, rows, columns], without a copy where weights are laid out so."""
    first = weight_rows(module, perturbations[0])
    if first.is_contiguous() and first.data_ptr() == perturbations.data_ptr():
        return perturbations.view(len(perturbations), *first.shape)
    return torch.stack([weight_rows(module, d) for d in perturbations])


def _product_scores(inputs: Tensor, output_gradient: Tensor, matrices: Tensor) -> Tensor:
    """Return the scores of a weight whose rows, [B, rows, columns], are multiplied with vectors."""
    if inputs.dim() == 1:
        inputs, output_gradient = inputs[:, None], output_gradient[:, None]
    width, positions = len(matrices), prod(inputs.shape[1:-1])
    if width * positions <= width + positions:
        return torch.stack([(linear(inputs, d) * output_gradient).flatten(1).sum(1) for d in matrices], 1)
    weights = matrices.flatten(1)
    step = max(1, _CHUNK_ELEMENTS // max(weights.shape[1], 1))
    chunks = []
    for i in range(0, len(inputs), step):
        slopes = output_gradient[i : i + step].flatten(1, -2).transpose(1, 2) @ inputs[i : i + step].flatten(1, -2)
        chunks.append(slopes.flatten(1) @ weights.T)
    return torch.cat(chunks)


def _lookup_scores(indices: Tensor, output_gradient: Tensor, perturbations: Tensor) -> Tensor:
    """Return the scores of an embedding; ``max_norm`` and ``padding_idx`` do not concern a perturbation."""
    terms = [(embedding(indices, d) * output_gradient).flatten(1).sum(1) for d in perturbations]
    return torch.stack(terms, 1)


def _applied_scores(
    module: nn.Module,
    inputs: tuple[Any, ...],
    options: Mapping[str, Any],
    output_gradient: Tensor,
    perturbations: Tensor,
) -> Tensor:
    """Return the scores of a layer of which no more is known than that it is linear in its weight."""
    owner, attribute = held_by(module)

    def outputs(weight: Tensor) -> Tensor:
        result = functional_call(owner, {attribute: weight}, inputs, dict(options))
        assert isinstance(result, Tensor)
        return result

    rest = outputs(torch.zeros_like(perturbations[0]))  # whatever does not depend on the weight
    return torch.stack([((outputs(d) - rest) * output_gradient).flatten(1).sum(1) for d in perturbations], 1)


def _operation(module: nn.Module) -> Operation:
    kind = kind_of(module)
    assert kind is not None
    return kind.operation


def _positions(module: nn.Module, inputs: Tensor, output_gradient: Tensor) -> int:
    """Return at how many positions of one sample the weight is used."""
    return prod((inputs if isinstance(module, _TRANSPOSED) else output_gradient).shape[2:])


def _columns(module: nn.Module, weights: int) -> int:
    """Return how many values are unfolded for each position."""
    return weights // (module.in_channels if isinstance(module, _TRANSPOSED) else module.out_channels) * module.groups  # type: ignore[operator,return-value]


def _weight_gradients(module: nn.Module, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Return the weight gradient of each sample, [M, *weight shape]."""
    if isinstance(module, _TRANSPOSED):
        # A transposed convolution is the adjoint of a convolution: input and output change places.
        low = [int(p) for p in module.padding]
        reach = [
            (size - 1) * stride + dilation * (kernel - 1) + 1
            for size, stride, dilation, kernel in zip(
                inputs.shape[2:], module.stride, module.dilation, module.kernel_size, strict=True
            )
        ]
        sizes = zip(output_gradient.shape[2:], low, reach, strict=True)
        widths = [(before, want - size - before) for size, before, want in sizes]
        padded = pad(output_gradient, [value for pair in reversed(widths) for value in pair])
        return _correlate(module, padded, inputs)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    amounts = list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    padded = pad(inputs, amounts, mode=mode) if any(amounts) else inputs  # type: ignore[arg-type]
    return _correlate(module, padded, output_gradient)


def _correlate(module: nn.Module, padded: Tensor, weights: Tensor) -> Tensor:
    """Return ``g[m, a, b, k] = sum_p weights[m, a, p] padded[m, b, p * stride + k * dilation]`` within each group.

    Args:
        module: The convolution, for kernel size, stride, dilation and groups.
        padded: [M, G * b, *spatial], whatever is needed of it already padded.
        weights: [M, G * a, *positions].

    Returns:
        [M, G * a, b, *kernel].
    """
    windows = padded
    positions, kernel = weights.shape[2:], tuple(module.kernel_size)  # type: ignore[arg-type]
    for axis, (size, stride, dilation) in enumerate(zip(kernel, module.stride, module.dilation, strict=True)):  # type: ignore[arg-type]
        windows = windows.unfold(axis + 2, dilation * (size - 1) + 1, stride)[..., ::dilation]
        windows = windows.narrow(axis + 2, 0, positions[axis])
    count, groups = padded.shape[0], int(module.groups)  # type: ignore[arg-type]
    # [M, G * b, *positions, *kernel] to [M * G, b * kernel, positions] and [M * G, positions, a]
    axes = list(range(2, 2 + 2 * len(kernel)))
    order = [0, 1, *axes[len(kernel) :], *axes[: len(kernel)]]
    unfolded = windows.permute(order).reshape(count * groups, -1, prod(positions))
    factors = weights.reshape(count * groups, -1, prod(positions))
    products = factors @ unfolded.transpose(1, 2)
    return products.reshape(count, weights.shape[1], -1, *kernel)
