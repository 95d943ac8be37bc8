r"""Taylor models of samples drawn again: the bootstrap, over the blocks of data that a Taylor model keeps sums of.

Sample n of a profile is added to block ``n // c mod L``, L = 16 or 8, with all its rows (positions of a sequence, drawn
labels): a sample is what is drawn again, never a row of it, or with ``cluster=c`` so many samples in a row, as cut from
one document. Of up to L clusters each is a block of its own; of more, blocks are sums of every L-th. Single rows would
take N x K numbers for each draw of labels, and are not kept by a profile that goes on from a file or is merged.

B blocks are drawn B - 1 times with replacement, so that the variance of a mean over the draws is that of the mean over
the blocks, ``S^2 / B`` (B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982, chapter 8; with B
draws it is too small by the factor 1 - 1/B).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .prediction_error import entry_factor
from .taylor_model import TaylorModel


def blocks_of(model: TaylorModel) -> int:
    """Return how many blocks of data a model can be drawn again from."""
    return int((model.sums["blocks.weight"] > 0).sum()) if model.sums and "blocks.weight" in model.sums else 0


def resampled(
    model: TaylorModel, resamples: int, seed: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield gradient and curvature of data drawn again, every entry shrunk as in the model.

    Args:
        model: A Taylor model with sums over at least two blocks of data.
        resamples: How often.
        seed: Decides the draws.
    """
    assert model.sums is not None
    used = model.sums["blocks.weight"] > 0
    weight = model.sums["blocks.weight"][used].double()
    matrices, slopes = model.sums["blocks.curvature"][used], model.sums["blocks.gradient"][used].double()
    factor = entry_factor(
        model.curvature, torch.tensordot(torch.ones(len(weight)), matrices, 1).double() / weight.sum()
    )
    slope_factor = entry_factor(model.gradient, slopes.sum(0) / weight.sum())
    random = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = random.integers(len(weight), size=len(weight) - 1)
        times = torch.from_numpy(np.bincount(drawn, minlength=len(weight)))
        total = float(times.double() @ weight)
        curvature = torch.tensordot(times.to(matrices), matrices, 1).double().mul_(factor).div_(total)
        gradient: Tensor = (times.double() @ slopes) * slope_factor / total
        yield gradient.numpy(), curvature.numpy()
