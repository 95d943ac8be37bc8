"""What errors of a weight cost: the mean squared change of the layer's output."""

from __future__ import annotations

import torch
from torch import Tensor

_STRIP = 256
"""Columns of a moment that are multiplied with at once."""


def output_error(errors: Tensor, moment: Tensor) -> Tensor:
    """Return e M e^T of each row e, [G, N], from errors [G, N, C] and M [G, C, C], which is symmetric.

    Only one of its halves is read, in strips, which takes half as many operations.

    Example:
        >>> output_error(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]))
        tensor([[7.]])
    """
    total = torch.zeros_like(errors[:, :, 0])
    for start in range(0, errors.shape[2], _STRIP):
        stop = start + _STRIP
        own, others = errors[:, :, start:stop], errors[:, :, stop:]
        products = own @ moment[:, start:stop, start:stop]
        if others.shape[2]:
            products += (others @ moment[:, stop:, start:stop]).mul_(2)
        total += products.mul_(own).sum(2)
    return total
