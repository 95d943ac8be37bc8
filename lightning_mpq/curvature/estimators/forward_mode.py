"""The change of the outputs to first order along one candidate, J D, by forward-mode differentiation."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...network.evaluator import Evaluator
from .input_perturbation import InputPerturbations
from .perturbation import Perturbations
from .weights import substituted


def output_change(evaluator: Evaluator, perturbations: Perturbations, index: int, batch: Any) -> Tensor:
    """Return J D for candidate ``index``, shaped like the outputs; about the cost of two forward passes.

    Raises:
        NotImplementedError: If the model holds an operation without a forward-mode derivative; names the way out.
    """

    def moving() -> AbstractContextManager[None]:
        duals = {layer: forward_ad.make_dual(perturbations.weight(layer), delta) for layer, delta in deltas.items()}
        return substituted(perturbations, duals)

    deltas = perturbations.of_candidate(index)
    return _tangent(evaluator, batch, f"weights of {', '.join(deltas)}", moving)


def input_change(evaluator: Evaluator, inputs: InputPerturbations, index: int, batch: Any) -> Tensor:
    """Return J D for scheme ``index`` of inputs, shaped like the outputs; about the cost of two forward passes.

    Raises:
        NotImplementedError: If the model holds an operation without a forward-mode derivative; names the way out.
    """

    def moved(layer: str, x: Tensor) -> Tensor:
        if layer not in touched:
            return x
        values = forward_ad.unpack_dual(x).primal.detach()
        # No sum, which a module around it would count among its own.
        return x.sub(forward_ad.make_dual(torch.zeros_like(values), -inputs.change(layer, index, values)))

    touched = inputs.touched(index)
    return _tangent(evaluator, batch, f"inputs of {', '.join(touched)}", lambda: inputs.changed(moved))


def _tangent(evaluator: Evaluator, batch: Any, what: str, moving: Callable[[], AbstractContextManager[None]]) -> Tensor:
    """Return the tangent of the outputs while something moves along a direction."""
    with torch.no_grad(), forward_ad.dual_level():
        try:
            with moving():
                outputs = evaluator.outputs(batch)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            if not re.search("forward[ -](AD|mode)|jvp", str(error), re.IGNORECASE):
                raise
            raise NotImplementedError(
                f"The {what} can only be measured by forward-mode differentiation here, and an operation "
                f"after them has none: {error} Use estimator='secant', or keep these layers in float."
            ) from error
        primal, tangent = forward_ad.unpack_dual(outputs)
        return torch.zeros_like(primal) if tangent is None else tangent.detach()
