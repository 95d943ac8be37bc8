"""The change of the outputs to first order along one candidate, J D, by forward-mode differentiation."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...network.evaluator import Evaluator
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
                f"after them has none: {error} Use estimator='secant', or keep these layers in float."
            ) from error
        primal, tangent = forward_ad.unpack_dual(outputs)
        return torch.zeros_like(primal) if tangent is None else tangent.detach()
