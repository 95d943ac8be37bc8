"""Tokens that count: those that the attention mask of a batch does not hide, whichever side the padding is on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def token_mask(batch: Any) -> Tensor | None:
    """Return which tokens of a batch count, bool [N, T]; None if it has no ``attention_mask`` of that shape.

    Example:
        >>> token_mask({"input_ids": torch.ones(1, 3), "attention_mask": torch.tensor([[0, 1, 1]])})
        tensor([[False,  True,  True]])
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None


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


def counting(outputs: Tensor, batch: Any) -> Tensor:
    """Return 1 where the outputs [N, T, ...] of a token count and 0 elsewhere, to broadcast; a single 1 if all do."""
    mask = token_mask(batch)
    if mask is None or outputs.dim() < 3 or outputs.shape[:2] != mask.shape:
        return torch.ones((), dtype=outputs.dtype, device=outputs.device)
    return mask.to(outputs)[(..., *[None] * (outputs.dim() - 2))]
