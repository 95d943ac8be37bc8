r"""The exact Hessian of a loss along all candidates: ``a_i = <grad L, D_i>`` and ``G_ij = D_i^T H D_j``.

One forward pass and one backward pass keep their graph; a second backward pass through ``<grad L, D_i>`` yields
``H D_i`` for every weight at once (B. A. Pearlmutter, Fast Exact Multiplication by the Hessian, Neural Computation
6, 1994), and its dot products with all D_j are row i of G.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ...network.batches import batch_weight
from ...network.evaluator import Evaluator, not_differentiable
from ...network.likelihood import Likelihood
from .base import Estimator, Loss, Setting
from .double_backward import (
    check_custom_functions,
    check_symmetry,
    custom_functions,
    differentiate,
)
from .input_perturbation import InputPerturbations
from .input_probes import InputProbes
from .measurement import Measurement
from .perturbation import Perturbations
from .weights import (
    all_scores,
    inner_products,
    substituted,
    twice_differentiable,
    weight_variables,
)

BatchLoss = Callable[[Any], Tensor]
_WAITING_BYTES = 2**28
"""Bytes of products ``H D_i`` that are kept for one pass over all perturbations."""


def divergence_loss(evaluator: Evaluator, likelihood: Likelihood) -> BatchLoss:
    """Return the mean divergence of a batch from the float model, whose weights are variables."""

    def loss(batch: Any) -> Tensor:
        outputs = evaluator.outputs(batch)
        return likelihood.divergence(outputs.detach(), outputs, batch).mean()

    return loss


class TaskGradient:
    """Measures the gradient of a loss along all candidates, ``<grad L, D_i>``."""

    def __init__(self, loss: BatchLoss, perturbations: Perturbations, inputs: InputPerturbations | None = None) -> None:
        """Prepare.

        Args:
            loss: Batch to its mean loss, a scalar.
            perturbations: All candidates.
            inputs: What schemes do to inputs, whose columns come after those of weights; None for no such columns.
        """
        self._loss = loss
        self._inputs = inputs
        self._perturbations = perturbations

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return the gradient along all candidates."""
        variables = weight_variables(self._perturbations)
        probes = InputProbes(self._inputs, self._perturbations.device)
        with substituted(self._perturbations, variables), probes.attached():
            leaves = [*variables.values(), *probes.leaves]
            slopes = torch.autograd.grad(self._loss_of(batch), leaves, allow_unused=True)
        return Measurement(batch_weight(batch), gradient=all_scores(self._perturbations, probes, [slopes])[0])

    def _loss_of(self, batch: Any) -> Tensor:
        loss = self._loss(batch)
        if not loss.requires_grad:
            raise not_differentiable("loss does")
        return loss

    def _slopes_at(self, variables: dict[str, Tensor], batch: Any) -> dict[str, Tensor | None]:
        """Return leading layer name to the gradient of the loss at the given weights; None where it has none."""
        with substituted(self._perturbations, variables):
            loss = self._loss_of(batch)
            slopes = torch.autograd.grad(loss, list(variables.values()), allow_unused=True)
        return dict(zip(variables, slopes, strict=True))


class SecondDerivatives(TaskGradient):
    """Measures gradient and curvature of a loss exactly: ``<grad L, D_i>`` and ``D_i^T H D_j``."""

    def __init__(
        self,
        loss: BatchLoss,
        perturbations: Perturbations,
        model: nn.Module,
        wanted: Sequence[int] | None = None,
    ) -> None:
        """Prepare.

        Args:
            loss: Batch to its mean loss, a scalar.
            perturbations: All candidates.
            model: The model.
            wanted: The candidates whose rows are to be measured; None for all.

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
        self._wanted = None if wanted is None else tuple(wanted)
        self._checked = False

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return the gradient along all candidates, and the curvature of the wanted ones along all, [wanted, K].

        Raises:
            NotImplementedError: If an operation has no second derivative, or a custom function hides it.
        """
        variables = weight_variables(self._perturbations)
        leaves = list(variables.values())
        with substituted(self._perturbations, variables):  # until the end: checkpointed blocks run again backwards
            loss = self._loss_of(batch)
            names = [] if self._checked else custom_functions(loss)
            found = differentiate(
                "derivative of the loss that can be differentiated again", loss, leaves, create_graph=True
            )
            slopes = dict(zip(variables, found, strict=True))
            if names:
                check_custom_functions(names, variables, slopes, lambda moved: self._slopes_at(_leaves(moved), batch))
            self._checked = True
            curvature = self._curvature(variables, slopes, names)
        gradient = inner_products(self._perturbations, [found])[0]
        return Measurement(batch_weight(batch), matrix=curvature, gradient=gradient)

    def _curvature(
        self, variables: dict[str, Tensor], slopes: dict[str, Tensor | None], doubtful: Sequence[str]
    ) -> Tensor:
        """Return ``D_i^T H D_j`` for the wanted i and all j, [wanted, K].

        Since it is symmetric, the row of a candidate is taken along its own and later groups only: autograd then leaves
        out everything before the first of these layers, about half of the network on average. Rows wait until
        `_WAITING_BYTES` of them are together, so that perturbations are made once for many rows.

        Args:
            variables: Leading layer name to its weight.
            slopes: Leading layer name to the gradient there, with a graph.
            doubtful: Custom functions that may hide second derivatives; if there are any, whole rows are taken and
                checked for symmetry.
        """
        whole = bool(doubtful) or self._wanted is not None
        count = self._perturbations.count
        total = torch.zeros(count, count, dtype=torch.float64)
        waiting: dict[int, list[Tensor | None]] = {}
        size = 0
        wanted = range(count) if self._wanted is None else self._wanted
        for index in wanted:
            waiting[index] = self._products(variables, slopes, index, 0 if whole else self._start(index))
            size += sum(p.numel() * p.element_size() for p in waiting[index] if p is not None)
            if size > _WAITING_BYTES or index == wanted[-1]:
                total[list(waiting)] = inner_products(self._perturbations, list(waiting.values())).to(total)
                waiting, size = {}, 0
        if self._wanted is not None:
            return total[list(self._wanted)]
        if doubtful:
            check_symmetry(doubtful, total, {layer: self._perturbations.columns[layer] for layer in variables})
            return (total + total.T) / 2
        later = torch.tensor([self._start(index) for index in range(count)])
        measured = later[:, None] <= torch.arange(count)[None, :]
        both = measured & measured.T  # within a group
        return torch.where(both, (total + total.T) / 2, torch.where(measured, total, total.T))

    def _start(self, index: int) -> int:
        """Return the first candidate of the group of a candidate."""
        return next(c.start for c in self._perturbations.columns.values() if c.start <= index < c.stop)

    def _products(
        self, variables: dict[str, Tensor], slopes: dict[str, Tensor | None], index: int, start: int
    ) -> list[Tensor | None]:
        """Return ``H D_i`` for the weights of groups that begin at candidate ``start`` or later; None for others."""
        deltas = self._perturbations.of_candidate(index)
        terms = [
            (slope * delta).sum()
            for layer, delta in deltas.items()
            if (slope := slopes[layer]) is not None and slope.requires_grad
        ]
        products: dict[str, Tensor | None] = dict.fromkeys(variables)
        if terms:
            later = [layer for layer in variables if self._perturbations.columns[layer].start >= start]
            what = f"second derivative of the loss with respect to the weight of {', '.join(deltas)}"
            found = differentiate(what, torch.stack(terms).sum(), [variables[layer] for layer in later])
            products |= dict(zip(later, found, strict=True))
        return list(products.values())


def _leaves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {layer: weight.detach().requires_grad_() for layer, weight in weights.items()}


@dataclass(frozen=True)
class Hessian(Estimator):
    """The exact Hessian, by default of the task loss with its gradient."""

    name = "hessian"
    default_loss = "task"
    has_gradient = True

    def start(self, setting: Setting) -> SecondDerivatives:
        """See `Estimator.start`."""
        evaluator = setting.evaluator
        loss: BatchLoss = evaluator.loss
        if setting.loss != "task":
            loss = divergence_loss(evaluator, setting.known_likelihood())
        everything = len(setting.wanted) == setting.everything.count
        return SecondDerivatives(loss, setting.everything, evaluator.model, None if everything else setting.wanted)

    def asks_for_likelihood(self, loss: Loss) -> bool:
        """See `Estimator.asks_for_likelihood`."""
        return loss != "task"
