r"""The exact Hessian of a loss along all candidates: ``a_i = <grad L, D_i>`` and ``G_ij = D_i^T H D_j``.

One forward pass and one backward pass keep their graph; a second backward pass through ``<grad L, D_i>`` yields
``H D_i`` for every weight at once (B. A. Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation
6, 1994), and its dot products with all D_j are row i of G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..batches import batch_weight
from .evaluator import Evaluator
from .likelihood import Likelihood
from .moments import WeightedMoments
from .perturbation import Perturbations
from .weights import inner_products, substituted, twice_differentiable, weight_variables

BatchLoss = Callable[[Any], Tensor]


def divergence_loss(evaluator: Evaluator, likelihood: Likelihood) -> BatchLoss:
    """Return the mean divergence of a batch from the float model, whose weights are variables."""

    def loss(batch: Any) -> Tensor:
        outputs = evaluator.outputs(batch)
        return likelihood.divergence(outputs.detach(), outputs, batch).mean()

    return loss


class TaskGradient:
    """Measures the gradient of a loss along all candidates, with standard errors over batches.

    Attributes:
        gradient: Moments of ``<grad L, D_i>``, [K], over batches weighted by their samples.
    """

    def __init__(self, loss: BatchLoss, perturbations: Perturbations) -> None:
        """Start from nothing.

        Args:
            loss: Batch to its mean loss, a scalar.
            perturbations: All candidates.
        """
        self.gradient = WeightedMoments((perturbations.count,))
        self._loss = loss
        self._perturbations = perturbations

    def update(self, batch: Any, generator: Generator) -> int:
        """Add a batch and return its number of samples."""
        samples = batch_weight(batch)
        variables = weight_variables(self._perturbations)
        with substituted(self._perturbations, variables):
            slopes = self._slopes(variables, batch, create_graph=False)
        self.gradient.update(inner_products(self._perturbations, [slopes])[0], weight=samples)
        return samples

    def _slopes(self, variables: dict[str, Tensor], batch: Any, create_graph: bool) -> tuple[Tensor | None, ...]:
        """Return the gradient of the loss for each variable; None where it does not depend on it."""
        loss = self._loss(batch)
        if not loss.requires_grad:
            raise ValueError(
                "The loss does not depend on any quantized layer in a way that can be differentiated. The functions "
                "passed must not detach, nor run under torch.no_grad()."
            )
        return torch.autograd.grad(loss, list(variables.values()), create_graph=create_graph, allow_unused=True)


class Hessian(TaskGradient):
    """Measures gradient and curvature of a loss exactly, with standard errors over batches.

    Attributes:
        curvature: Moments of ``D_i^T H D_j``, [K, K], over batches weighted by their samples.
    """

    def __init__(self, loss: BatchLoss, perturbations: Perturbations, model: nn.Module) -> None:
        """Start from nothing; see `TaskGradient`.

        Raises:
            NotImplementedError: If the model holds weight_norm, whose second derivative is silently wrong.
        """
        if not twice_differentiable(model):
            raise NotImplementedError(
                "The second derivative of weight_norm is silently wrong in torch. Remove it (its weight stays as "
                "it is) by torch.nn.utils.parametrize.remove_parametrizations or remove_weight_norm, or use another "
                "estimator."
            )
        super().__init__(loss, perturbations)
        self.curvature = WeightedMoments((perturbations.count, perturbations.count))

    def update(self, batch: Any, generator: Generator) -> int:
        """Add a batch and return its number of samples."""
        samples = batch_weight(batch)
        variables = weight_variables(self._perturbations)
        with substituted(self._perturbations, variables):  # until the end: checkpointed blocks run again backwards
            slopes = self._slopes(variables, batch, create_graph=True)
            curvature = torch.stack([self._row(variables, slopes, i) for i in range(self._perturbations.count)])
        self.gradient.update(inner_products(self._perturbations, [slopes])[0], weight=samples)
        self.curvature.update((curvature + curvature.T) / 2, weight=samples)
        return samples

    def _row(self, variables: dict[str, Tensor], slopes: Sequence[Tensor | None], index: int) -> Tensor:
        """Return ``D_i^T H D_j`` for one i and all j, [K]."""
        by_layer = dict(zip(variables, slopes, strict=True))
        terms = [
            (slope * delta).sum()
            for layer, delta in self._perturbations.of_candidate(index).items()
            if (slope := by_layer[layer]) is not None and slope.requires_grad
        ]
        leaves = list(variables.values())
        products: Sequence[Tensor | None] = [None] * len(leaves)
        if terms:
            along = torch.stack(terms).sum()
            products = torch.autograd.grad(along, leaves, retain_graph=True, allow_unused=True)
        return inner_products(self._perturbations, [products])[0]
