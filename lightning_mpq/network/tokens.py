"""Tokens that count: those that the attention mask of a batch does not hide, whichever side the padding is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .batches import inputs_of


def token_mask(batch: Any) -> Tensor | None:
    """Return which tokens of a batch count, bool [N, T]; None if it has no ``attention_mask`` of that shape.

    Tokens are hidden by 0 (false), or by large negative numbers where a floating-point mask is added to attention's
    scores: such a one holds nothing but zeros and negative numbers.

    Example:
        >>> token_mask({"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])})
        tensor([[False,  True,  True]])
    """
    inputs = inputs_of(batch)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return None
    if mask.is_floating_point() and not bool((mask > 0).any()):
        return mask == 0
    return mask != 0


def real_tokens(inputs: Tensor, mask: Tensor | None, *, lookup: bool = False) -> Tensor:
    """Return what a layer was called on without the tokens that do not count, [tokens, ...]; else as it is.

    Args:
        inputs: [N, T, columns], or [N * T, columns]; of a lookup [N, T].
        mask: As `token_mask` returns it.
        lookup: Whether inputs are indices.
    """
    if mask is None or bool(mask.all()):
        return inputs
    mask = mask.to(inputs.device)
    if inputs.shape[:2] == mask.shape and inputs.dim() == (2 if lookup else 3):
        return inputs[mask]
    if not lookup and inputs.dim() == 2 and mask.shape[1] > 1 and len(inputs) == mask.numel():
        return inputs[mask.flatten()]
    return inputs


def real_operand(operand: Tensor, mask: Tensor | None) -> Tensor:
    """Return what a product of attention reads without the tokens that do not count, [tokens, ...]; else as it is.

    Args:
        operand: Queries, keys or values, [N, heads, T, columns] in any order of what follows the samples, or
            [N * heads, T, columns]. As it is where no dimension, or more than one, is as long as the sequences:
            probabilities, above all.
        mask: As `token_mask` returns it.
    """
    if mask is None or bool(mask.all()) or operand.dim() < 3 or len(operand) % len(mask):
        return operand
    of_tokens = [dim for dim in range(1, operand.dim()) if operand.shape[dim] == mask.shape[1]]
    if len(of_tokens) != 1:
        return operand
    heads = len(operand) // len(mask)
    return operand.movedim(of_tokens[0], 1)[mask.to(operand.device).repeat_interleave(heads, 0)]


def weights_of_tokens(outputs: Tensor, *, most: float) -> Tensor:
    """Return what each token of a linear layer counts by the size of its outputs, [tokens]: at most 1.

    Of a transformer a few tokens have outputs hundreds of times as large as the others, and errors to match (M. Sun et
    al., "Massive Activations in Large Language Models", arXiv:2402.17762), which the normalization that follows divides
    by the size of their own token. So tokens that are larger than a multiple of the batch's median are weighted by the
    inverse of their squared size, as in P. J. Huber, "Robust Estimation of a Location Parameter", 1964.

    Args:
        outputs: [tokens, channels].
        most: The multiple of the median size up to which tokens count in full.

    Example:
        >>> weights_of_tokens(torch.tensor([[1.0], [2.0], [8.0]]), most=2.0)
        tensor([1.0000, 1.0000, 0.2500])
    """
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    sizes = wide.square().sum(1)
    limit = most**2 * sizes.median() if len(sizes) else sizes.sum()
    return torch.where(sizes > limit, limit / sizes, 1.0) if limit > 0 else torch.ones_like(sizes)


@torch.no_grad()
def weights_of_inputs(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """Return what the tokens that a float layer is called on count, where outputs above the median size count less.

    Else what is fitted makes a few enormous tokens good at the cost of all others.

    Args:
        layer: The layer.
        inputs: [tokens, columns].
    """
    bias = None if layer.bias is None else layer.bias.to(inputs)
    return weights_of_tokens(nn.functional.linear(inputs, layer.weight.to(inputs), bias), most=1.0)


def counting(outputs: Tensor, batch: Any) -> Tensor:
    """Return 1 where the outputs [N, T, ...] of a token count and 0 elsewhere, to broadcast; a single 1 if all do."""
    mask = token_mask(batch)
    if mask is None or outputs.dim() < 3 or outputs.shape[:2] != mask.shape:
        return torch.ones((), dtype=outputs.dtype, device=outputs.device)
    return mask.to(outputs)[(..., *[None] * (outputs.dim() - 2))]
