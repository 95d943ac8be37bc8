r"""Sampling noise taken back before an optimiser can exploit it: a solver picks the errors that flatter it."""

from __future__ import annotations

from dataclasses import replace
from math import inf, sqrt

import torch
from torch import Tensor

from .taylor_model import TaylorModel


def shrink(model: TaylorModel, *, gradient: bool = True, between: bool = True) -> TaylorModel:
    """Return a model whose noisy entries are drawn towards zero; standard errors and sums stay those of the data.

    Gradient: ``a max(0, 1 - e^2 / a^2)`` with its standard error e, entry by entry: the positive part of the
    James-Stein factor (B. Efron, C. Morris, Stein's Estimation Rule and Its Competitors, JASA 68, 1973), known
    for single coefficients as the non-negative garrote (L. Breiman, Technometrics 37, 1995, section 2).

    Between groups: ``(1 - lambda) G_ij`` with one intensity for all, that of least expected squared error,
    ``lambda = sum Var(r_ij) / sum r_ij^2`` over pairs of different groups, ``r_ij = G_ij / sqrt(G_ii G_jj)``,
    at most 1 (J. Schaefer, K. Strimmer, A Shrinkage Approach to Large-Scale Covariance Matrix Estimation,
    Statistical Applications in Genetics and Molecular Biology 4, 2005, target D). Being a mixture of G and its part
    within groups, the result stays positive semidefinite if G is. At ``lambda = 1`` it is the additive model.

    Args:
        model: A Taylor model with standard errors for what is to be shrunk; without them that part stays as it is.
        gradient: Whether to shrink the gradient.
        between: Whether to shrink the curvature between groups.

    Example::

        raw = mpq.profile(model, batches, shrink=False)          # `profile` does it by default
        allocation = mpq.allocate(shrink(raw), budget)           # noise cannot flatter the policy
    """
    slope, matrix = model.gradient, model.curvature
    if gradient and model.gradient_error is not None:
        slope = _garrote(slope, model.gradient_error)
    if between and model.curvature_error is not None:
        matrix = matrix * torch.where(between_groups(model), 1 - shrinkage_intensity(model), 1.0)
    return replace(model, gradient=slope, curvature=matrix)


def shrinkage_intensity(model: TaylorModel) -> float:
    """Return lambda in 0..1: the share of the curvature between groups that its sampling noise accounts for.

    Raises:
        ValueError: If the model has no standard errors.
    """
    if model.curvature_error is None:
        raise ValueError("The intensity of shrinkage follows from standard errors, and this Taylor model has none.")
    pairs = pairs_in_errors(model)
    return min(1.0, pairs**-2) if pairs > 0 else 0.0


def pairs_in_errors(model: TaylorModel) -> float:
    """Return how large the curvature between groups is in standard errors, both as root mean squares of correlations.

    About 1 where a measured model holds nothing but noise; infinite for a model whose errors are zero.

    Raises:
        ValueError: If the model has no standard errors.
    """
    if model.curvature_error is None:
        raise ValueError("This Taylor model has no standard errors to compare its curvature with.")
    scale = model.curvature.diagonal().abs().sqrt()
    weight = torch.where(scale > 0, 1 / scale, 0.0)
    owner = _owners(model)
    signal = noise = 0.0
    for group in range(len(model.groups)):  # a few rows at a time, since the matrix may fill the memory
        mine = (owner == group).nonzero()[:, 0]
        factor = weight[mine, None] * torch.where(owner == group, 0.0, weight)
        signal += float((model.curvature[mine] * factor).square().sum())
        noise += float((model.curvature_error[mine] * factor).square().sum())
    return sqrt(signal / noise) if noise > 0 else inf if signal > 0 else 0.0


def between_groups(model: TaylorModel) -> Tensor:
    """Return where two candidates belong to different groups, [K, K], bool."""
    owner = _owners(model)
    return owner[:, None] != owner[None, :]


def _owners(model: TaylorModel) -> Tensor:
    """Return the group of each candidate, [K]."""
    order = {group.name: position for position, group in enumerate(model.groups)}
    return torch.tensor([order[candidate.group] for candidate in model.candidates])


def _garrote(values: Tensor, errors: Tensor) -> Tensor:
    """Return ``values * max(0, 1 - errors^2 / values^2)``; 0 where a value is 0."""
    square = values.square()
    kept = (1 - errors.square() / torch.where(square > 0, square, torch.ones_like(square))).clamp(min=0)
    return torch.where(square > 0, values * kept, torch.zeros_like(values))
