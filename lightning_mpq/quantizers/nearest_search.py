"""Which range of a weight a scale should cover where weights take their nearest levels, by the error of the output."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..schemes import WeightScheme
from ..tools.slices import slices
from .clip_search import Scales, rank_trials, trial_scales
from .output_error import output_error
from .quantized_rows import encode, placed

_CHUNK_ELEMENTS, _LEAST_ROWS = 2**20, 512
"""Weights whose errors are computed at once (4 MiB of float32), and the fewest rows: with fewer, a product takes longer
to read the moment than to multiply."""


def search_nearest(rows: Tensor, moment: Tensor, scheme: WeightScheme, row_weights: Tensor) -> Scales:
    """Return the best of all trials, for each row or scale.

    Where the moment is a diagonal, the error of the output falls apart into those of single weights, and every block of
    columns has a range of its own. Otherwise each range is tried in full, for rows as a whole, beside the one that
    neglects how blocks interact.

    Args:
        rows: [R, C].
        moment: [G, C, C], or [G, C] for its diagonal where it is one.
        scheme: The scheme.
        row_weights: [R], how much the error of a row counts where rows share a scale.
    """
    trials = trial_scales(rows, scheme)
    diagonal = moment if moment.dim() == 2 else moment.diagonal(dim1=1, dim2=2)
    costs = torch.ones_like(diagonal) if scheme.clip == "mse" else diagonal
    if len(trials.scale) == 1:
        return trials.stored(scheme)
    if scheme.clip == "mse" or moment.dim() == 2:
        return trials.take(rank_trials(rows, costs, scheme, trials, row_weights)[:1]).stored(scheme)
    if isinstance(scheme.granularity, int):
        trials = trials.joined(trials.take(rank_trials(rows, costs, scheme, trials)[:2]))
    errors = []
    for number in range(len(trials.scale)):
        scales = trials.at(torch.tensor([number])).stored(scheme)
        errors.append(nearest_error(rows, moment, scheme, scales)[1])
    error = torch.stack(errors)
    if scheme.granularity == "tensor":
        return trials.take((error * row_weights).sum(1).argmin().view(1, 1, 1)).stored(scheme)
    return trials.take(error.argmin(0)[None, :, None].expand(1, -1, trials.scale.shape[2])).stored(scheme)


def nearest_error(rows: Tensor, moment: Tensor, scheme: WeightScheme, scales: Scales) -> tuple[Tensor, Tensor]:
    """Return the nearest codes at given scales, uint8 [R, C], and e M e^T of each row, [R]; a few rows at a time.

    Args:
        rows: [R, C].
        moment: As in `search_nearest`.
        scheme: The scheme.
        scales: One trial.
    """
    codes, errors = [], []
    for part in row_chunks(rows, moment):
        own = scales.rows(part)
        zero_point = None if own.zero_point is None else own.zero_point[0]
        codes.append(encode(rows[part], own.scale[0], zero_point, scheme))
        levels = placed(own.scale[0], zero_point, scheme, rows.shape[1], rows.dtype)
        errors.append(error_of_rows(levels.values(codes[-1].to(rows.dtype)) - rows[part], moment))
    return torch.cat(codes), torch.cat(errors)


def row_chunks(rows: Tensor, moment: Tensor) -> Iterator[slice]:
    """Yield a few rows at a time; all of a weight in several parts."""
    return slices(len(rows), len(rows) if len(moment) > 1 else max(_LEAST_ROWS, _CHUNK_ELEMENTS // rows.shape[1]))


def error_of_rows(errors: Tensor, moment: Tensor) -> Tensor:
    """Return e M e^T of each row e, [R]; see `nearest_error`."""
    by_part = errors.unflatten(0, (len(moment), -1))
    if moment.dim() == 2:
        return (by_part.square() * moment[:, None]).sum(2).flatten()
    return output_error(by_part, moment).flatten()
