r"""The standard error of a prediction, from what blocks of the data predict one by one.

A prediction is a mean over samples of ``g_n . x + (s_n . x)^2 / 2``, so that the errors of all its K^2 entries hang
together; adding up their variances as if they were independent says little. With sums over L blocks of the data,

    f_b = a_b . x + x . G_b . x / 2,   f = sum w_b f_b / sum w_b,
    error^2 = L / (L - 1) sum w_b^2 (f_b - f)^2 / (sum w_b)^2,

the error of a ratio of sums over groups of units (W. G. Cochran, Sampling Techniques, 3rd ed., 1977, chapter 6).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor


def block_error(
    sums: Mapping[str, Tensor],
    gradient: Tensor | None,
    curvature: Tensor,
    chosen: Sequence[int],
    between: bool = False,
) -> float | None:
    """Return the standard error of the predicted loss of a policy; None without two blocks of data.

    A model whose entries were shrunk, or raised for unseen samples, keeps the sums of the data; its error is that of
    the data, with every entry scaled likewise.

    Args:
        sums: Those of a `TaylorModel`.
        gradient: Its gradient, [K]; None where the loss that is modelled has none.
        curvature: Its curvature, [K, K].
        chosen: One candidate for each group.
        between: Whether the error is that of the terms between groups alone.
    """
    if "blocks.curvature" not in sums:
        return None
    weight = sums["blocks.weight"].double()
    used = weight > 0
    count = int(used.sum())
    if count < 2:
        return None
    weight = weight[used]
    matrices = sums["blocks.curvature"][used][:, chosen][:, :, chosen].double()
    mean = matrices.sum(0) / weight.sum()
    terms = matrices * entry_factor(curvature[chosen][:, chosen], mean)
    totals = terms.sum((1, 2)) / 2
    if between:
        totals -= terms.diagonal(dim1=1, dim2=2).sum(1) / 2
    elif gradient is not None:
        slopes = sums["blocks.gradient"][used][:, chosen].double()
        totals += (slopes * entry_factor(gradient[chosen], slopes.sum(0) / weight.sum())).sum(1)
    value = totals.sum() / weight.sum()
    variance = count / (count - 1) * (totals - weight * value).square().sum() / weight.sum().square()
    return sqrt(float(variance))


def entry_factor(entries: Tensor, mean: Tensor) -> Tensor:
    """Return by how much entries were scaled from the mean of the data: shrunk, or raised for unseen samples."""
    return torch.where(mean == 0, 1.0, entries / torch.where(mean == 0, 1.0, mean)).clamp(min=0)
