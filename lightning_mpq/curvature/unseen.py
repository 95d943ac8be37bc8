"""The loss that is expected on unseen samples, where weights were rounded to those that the loss was measured on."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..rounding.rounded_weights import RoundedWeights
from .shrinkage import shrink
from .taylor_model import TaylorModel


def without_chance(model: TaylorModel, rounded: RoundedWeights | None) -> TaylorModel:
    """Return a model as it is solved: that of unseen samples, its entries drawn towards zero by their errors.

    Args:
        model: A Taylor model as it was measured.
        rounded: See `for_unseen`.
    """
    return shrink(for_unseen(model, rounded))


def for_unseen(model: TaylorModel, rounded: RoundedWeights | None) -> TaylorModel:
    """Return a model whose second-order terms are those of unseen samples; its sums stay those of the data.

    The loss to second order is a weighted square of what candidates do to their layers' outputs. Where error feedback
    has made that small by chance too, it is larger on other samples, by a factor that `round_candidates` tells for each
    layer (``RoundedWeights.unseen``). Changes of outputs are scaled by its root, so that the curvature stays positive
    semidefinite if it is. Candidates that are rounded to nearest do not depend on samples, and stay as they are.

    Args:
        model: A Taylor model as it was measured.
        rounded: The weights that it was measured with; None where each weight was rounded by itself.
    """
    if rounded is None:
        return model
    layers = {group.name: group.layers for group in model.groups}
    factors = []
    for candidate in model.candidates:
        fed_on = candidate.scheme.weight.rounding == "second_order"
        own = [rounded.unseen.get(layer, 1.0) if fed_on else 1.0 for layer in layers[candidate.group]]
        factors.append(sum(own) / len(own))
    scale = torch.tensor(factors, dtype=torch.float64).sqrt()
    pairs = scale[:, None] * scale
    error = None if model.curvature_error is None else model.curvature_error * pairs
    return replace(model, curvature=model.curvature * pairs, curvature_error=error)
