"""The change of the outputs to first order along candidates, J D, in two ways.

Forward mode is exact for the most operations; two backward passes share one forward pass among all candidates.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .batches import Evaluator
from .perturbation import Perturbations
from .weights import substituted


def output_change(evaluator: Evaluator, perturbations: Perturbations, index: int, batch: Any) -> Tensor:
    """Return J D for candidate ``index``, shaped like the outputs; about the cost of two forward passes.

    Raises:
        NotImplementedError: If the model holds an operation without a forward-mode derivative; names the way out.
    """
    with torch.no_grad(), forward_ad.dual_level():
        duals = {
            layer: forward_ad.make_dual(perturbations.weight(layer), delta)
            for layer, delta in perturbations.of_candidate(index).items()
        }
        try:
            with substituted(perturbations, duals):
                outputs = evaluator.outputs(batch)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if not re.search("forward[ -](AD|mode)|jvp", str(error), re.IGNORECASE):
                raise
            names = ", ".join(duals)
            raise NotImplementedError(
                f"The weights of {names} can only be measured by forward-mode differentiation here, and an operation "
                f"behind them has none: {error} Use curvature='secant', or keep these layers in float."
            ) from error
        primal, tangent = forward_ad.unpack_dual(outputs)
        return torch.zeros_like(primal) if tangent is None else tangent.detach()


class Linearization:
    """J D for any number of candidates from one forward pass: the transpose of the transposed Jacobian.

    The weight gradient ``J^T v`` is linear in v, and differentiating ``<J^T v, D>`` with respect to v yields J D (J.
    Townsend, A new trick for calculating Jacobian vector products, 2017). The graph of the backward pass is kept, so
    that a candidate costs one pass from its layer to the outputs. Use it under `substituted` (weights, variables).
    """

    def __init__(self, outputs: Tensor, variables: dict[str, Tensor], perturbations: Perturbations) -> None:
        """Build the backward pass.

        Args:
            outputs: Outputs with a graph behind them.
            variables: Leading layer name to the weight that they were computed with.
            perturbations: All candidates.
        """
        self._perturbations = perturbations
        self._outputs = outputs
        self._direction = torch.zeros_like(outputs, requires_grad=True)
        slopes: tuple[Tensor | None, ...] = (None,) * len(variables)
        if outputs.requires_grad:
            slopes = torch.autograd.grad(
                outputs, list(variables.values()), self._direction, create_graph=True, allow_unused=True
            )
        self._slopes = dict(zip(variables, slopes, strict=True))

    def output_change(self, index: int) -> Tensor:
        """Return J D for candidate ``index``, shaped like the outputs."""
        terms = [
            (slope * delta).sum()
            for layer, delta in self._perturbations.of_candidate(index).items()
            if (slope := self._slopes[layer]) is not None and slope.requires_grad
        ]
        if not terms:
            return torch.zeros_like(self._outputs)
        along = torch.stack(terms).sum()
        (change,) = torch.autograd.grad(along, self._direction, retain_graph=True, allow_unused=True)
        return torch.zeros_like(self._outputs) if change is None else change
