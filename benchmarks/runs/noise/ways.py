"""Ways to choose a policy from a Taylor model of few samples, whose pairs of groups are mostly noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_mpq import BitPolicy, Budget, TaylorModel, allocate
from lightning_mpq.curvature import shrink
from lightning_mpq.curvature.shrinkage import between_groups

Way = Callable[[TaylorModel, Budget], BitPolicy]
SOLVING: dict[str, Any] = {"gap": 1e-2, "time_limit": 15.0}
"""Of each program; those of noise alone are not proved in that, and their policies come from local searches."""
_ROUNDS = 3
"""Programs that the robust policy is sought by."""


def as_measured(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Take the mean of the samples as it is."""
    return allocate(raw, budget, **SOLVING).policy


def shrunk(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Draw all pairs towards zero by one factor, the share of them that noise does not account for."""
    return as_measured(shrink(raw), budget)


def shrunk_by_block(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Draw the pairs of each two groups towards zero by a factor of their own, found in the same way."""
    assert raw.curvature_error is not None
    scale = raw.curvature.diagonal().abs().sqrt()
    weight = torch.where(scale > 0, 1 / scale, 0.0)
    signal = _sums_by_block(raw, (raw.curvature * weight[:, None] * weight).square())
    noise = _sums_by_block(raw, (raw.curvature_error * weight[:, None] * weight).square())
    factor = (1 - noise / signal.clamp(min=1e-300)).clamp(min=0)
    changed = torch.where(between_groups(raw), raw.curvature * factor, raw.curvature)
    return as_measured(replace(raw, curvature=changed), budget)


def additive(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Leave all pairs out."""
    return allocate(raw, budget, objective="additive", **SOLVING).policy


def additive_unless_significant(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Leave all pairs out unless they add up to more than two standard errors at the policy that shrinkage gives."""
    policy = shrunk(raw, budget)
    said = raw.predict(policy)
    if said.between_error is None or abs(said.between) <= 2 * said.between_error:
        return additive(raw, budget)
    return policy


def robust(raw: TaylorModel, budget: Budget) -> BitPolicy:
    """Minimise the prediction plus its standard error, entries being independent.

    A square root lies below its tangents: every round solves the program with the error linearised at the policy before
    (majorisation-minimisation: Hunter, Lange, The American Statistician 58, 2004).
    """
    assert raw.curvature_error is not None
    assert raw.gradient_error is not None
    policy = as_measured(raw, budget)
    for _ in range(_ROUNDS):
        error = raw.entrywise_error(policy)
        if not error:
            break
        gradient = raw.gradient + raw.gradient_error.square() / (2 * error)
        curvature = raw.curvature + raw.curvature_error.square() / (2 * error)
        found = as_measured(replace(raw, gradient=gradient, curvature=curvature), budget)
        if found == policy:
            break
        policy = found
    return policy


def _sums_by_block(model: TaylorModel, values: Tensor) -> Tensor:
    """Return for each entry the sum of the values over all pairs of candidates of the same two groups, [K, K]."""
    order = {group.name: place for place, group in enumerate(model.groups)}
    owner = torch.tensor([order[candidate.group] for candidate in model.candidates])
    rows = torch.zeros(len(order), values.shape[1], dtype=values.dtype).index_add_(0, owner, values)
    sums = torch.zeros(len(order), len(order), dtype=values.dtype).index_add_(1, owner, rows)
    return sums[owner][:, owner]


WAYS: dict[str, Way] = {
    "shrunk": shrunk,
    "shrunk by block": shrunk_by_block,
    "as measured": as_measured,
    "robust": robust,
    "additive unless significant": additive_unless_significant,
    "additive": additive,
}
"""The first one is what `profile` and `allocate` do."""
