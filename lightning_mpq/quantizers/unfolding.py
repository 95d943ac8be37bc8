"""What the rows of a layer's weight are multiplied with: its inputs, unfolded."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..network.layer_kinds import ParameterView, float_class, kind_of, rows_and_columns

_CHUNK_ELEMENTS = 2**22
"""Unfolded input values that are made at once (16 MiB of float32)."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def unfolded_chunks(module: nn.Module, inputs: Tensor, output_shape: torch.Size, least: int = 1) -> Iterator[Tensor]:
    """Yield what `unfold_inputs` returns for a call of a layer, in float32 or wider, a few samples at a time.

    Args:
        module: The layer.
        inputs: What it was called on, with or without a batch dimension.
        output_shape: Shape of what it returned.
        least: In so many chunks if there are as many samples.
    """
    batched, output_shape = _with_batch(module, inputs, output_shape)
    positions = prod(batched.shape[1:-1]) if _is_product(module) else prod(output_shape[2:])
    _, columns = rows_and_columns(module)
    per_sample = max(positions * columns * int(getattr(module, "groups", 1)), 1)
    for chunk in batched.split(max(1, min(_CHUNK_ELEMENTS // per_sample, ceil(len(batched) / least)))):
        values = unfold_inputs(module, chunk, output_shape[2:])
        yield values.to(torch.promote_types(values.dtype, torch.float32))


def unfold_inputs(module: nn.Module, inputs: Tensor, output_size: torch.Size | tuple[int, ...] = ()) -> Tensor:
    """Return the vectors that a layer's weight rows are multiplied with.

    With ``rows = weight_rows(module)`` cut into convolution groups, [groups, rows / groups, columns], the layer's
    output without bias is ``rows @ vectors^T``, one column for each position.

    Args:
        module: Linear, Conv1d/2d/3d or ConvTranspose1d/2d/3d.
        inputs: [N, ..., columns] for Linear, [N, channels, *spatial] for convolutions.
        output_size: Spatial shape of the output; only transposed convolutions need it.

    Returns:
        [groups, N * positions, columns].

    Raises:
        TypeError: If the layer is of another type.

    Example:
        >>> conv = nn.Conv1d(2, 4, kernel_size=3, bias=False)
        >>> vectors = unfold_inputs(conv, images := torch.randn(5, 2, 8))
        >>> torch.allclose(vectors @ conv.weight.flatten(1).T, conv(images).mT.reshape(1, 30, 4), atol=1e-5)
        True
    """
    kind = float_class(module)
    if _is_product(module):
        return inputs.reshape(1, -1, inputs.shape[-1])
    if kind in _TRANSPOSED:
        return _windows(module, _stretched(module, inputs, output_size), transposed=True)
    if kind not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        raise TypeError(
            f"The inputs of a {type(module).__name__} cannot be unfolded; expected Linear or a convolution."
        )
    amounts = list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = pad(inputs, amounts, mode=mode) if any(amounts) else inputs  # type: ignore[arg-type]
    return _windows(module, padded, transposed=False)


def _is_product(module: nn.Module) -> bool:
    """Tell whether rows are multiplied with the vectors along the last dimension of the inputs."""
    kind = kind_of(module)
    return isinstance(module, ParameterView) or (kind is not None and kind.operation == "linear")


def _with_batch(module: nn.Module, inputs: Tensor, output_shape: torch.Size) -> tuple[Tensor, torch.Size]:
    """Give single samples a batch dimension."""
    spatial = len(getattr(module, "kernel_size", ()))
    single = inputs.dim() == (spatial + 1 if spatial else 1)
    return (inputs[None], torch.Size([1, *output_shape])) if single else (inputs, output_shape)


def _stretched(module: nn.Module, inputs: Tensor, output_size: torch.Size | tuple[int, ...]) -> Tensor:
    """Return what an ordinary convolution of stride 1 with the mirrored kernel would read.

    A transposed convolution of stride s is that convolution of the input with s - 1 zeros after each value
    (V. Dumoulin, F. Visin, "A guide to convolution arithmetic", arXiv:1603.07285, section 4).
    """
    strides = [int(s) for s in module.stride]  # type: ignore[union-attr]
    sizes = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], strides, strict=True)]
    stretched = inputs.new_zeros(*inputs.shape[:2], *sizes)
    every = tuple(slice(None, None, stride) for stride in strides)
    stretched[(slice(None), slice(None), *every)] = inputs
    amounts: list[int] = []
    for size, out, kernel, dilation, cut in reversed(
        list(zip(sizes, output_size, module.kernel_size, module.dilation, module.padding, strict=True))  # type: ignore[arg-type]
    ):
        reach = dilation * (kernel - 1)
        before = reach - cut
        amounts += [before, out + reach - size - before]  # negative amounts crop
    return pad(stretched, amounts)


def _windows(module: nn.Module, padded: Tensor, transposed: bool) -> Tensor:
    """Return all windows under the kernel, [groups, N * positions, channels / groups * kernel]."""
    kernel: tuple[int, ...] = tuple(module.kernel_size)  # type: ignore[arg-type]
    strides = [1] * len(kernel) if transposed else list(module.stride)  # type: ignore[arg-type]
    windows = padded.unflatten(1, (int(module.groups), -1))  # type: ignore[arg-type]
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, module.dilation, strict=True)):  # type: ignore[arg-type]
        windows = windows.unfold(axis + 3, dilation * (size - 1) + 1, stride)[..., ::dilation]
    axes = range(3, 3 + len(kernel))
    order = [1, 0, *axes, 2, *(axis + len(kernel) for axis in axes)]
    windows = windows.permute(order)  # groups, N, *positions, channels, *kernel
    if transposed:
        windows = windows.flip(list(range(-len(kernel), 0)))
    return windows.reshape(windows.shape[0], -1, prod(windows.shape[-1 - len(kernel) :]))
