"""Gradients of learned scales, averaged over processes: data-parallel wrappers do not know these parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def average_gradients(scales: Sequence[nn.Parameter]) -> None:
    """Average gradients over all processes, each of which must call this with the same parameters.

    A parameter without a gradient in all processes keeps none. Does nothing where ``torch.distributed`` is not in use.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    world = torch.distributed.get_world_size()
    if world == 1 or not scales:
        return
    with torch.no_grad():
        parts: list[Tensor] = []
        for scale in scales:
            gradient = torch.zeros_like(scale) if scale.grad is None else scale.grad
            parts += [gradient.flatten(), scale.new_full((1,), float(scale.grad is not None))]
        flat = torch.cat(parts)
        torch.distributed.all_reduce(flat)
        start = 0
        for scale in scales:
            mean = flat[start : start + scale.numel()].view_as(scale) / world
            if flat[start + scale.numel()] > 0:
                scale.grad = mean.clone() if scale.grad is None else scale.grad.copy_(mean)
            start += scale.numel() + 1
