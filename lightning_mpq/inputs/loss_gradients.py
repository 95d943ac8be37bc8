"""How much the loss reacts to each value of an input: gradients, from the pass in which its range is found."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..network.calibration import Calibration
from ..network.guessed_likelihood import guess_likelihood
from ..network.likelihood import Likelihood
from ..tools.finite import all_finite


class LossGradients:
    """Gradients along a random score of the outputs, whose squares are the diagonal of the Fisher information.

    Where they cannot be had (outputs that are no tensor, whose meaning is not known, or that cannot be differentiated)
    there are none.
    """

    def __init__(self, calibration: Calibration) -> None:
        """Keep how the model is called."""
        self._calibration = calibration
        self._likelihood: Likelihood | None = calibration.likelihood
        self._given_up, self._seen = False, list[tuple[str, Tensor]]()
        self._forward = False

    def tapped(self, layer: str, inputs: Tensor) -> Tensor:
        """Return what a layer is to compute with, so that its gradient will be known."""
        if self._given_up or not torch.is_grad_enabled():
            return inputs
        own = inputs.clone() if inputs.requires_grad else inputs.detach().clone().requires_grad_()
        if self._forward:  # not when a checkpointed block computes once more
            self._seen.append((layer, own))
        return own

    def of(self, batch: Any, number: int) -> list[tuple[str, Tensor, Tensor]]:
        """Run the model on a batch; return each (layer, input, gradient) of its calls."""
        self._seen, self._forward = [], True
        with torch.set_grad_enabled(not self._given_up):
            outputs, name = self._calibration.named_outputs(batch, number)
        self._forward = False
        if self._given_up:
            return []
        try:
            score = self._score(outputs, batch, name)
            inputs = [inputs for _, inputs in self._seen]
            gradients = torch.autograd.grad(outputs, inputs, score, allow_unused=True)
        except (RuntimeError, TypeError, ValueError, LookupError):
            self._given_up = True
            return []
        finally:
            seen, self._seen = self._seen, []
        return [
            (layer, inputs.detach(), gradient)
            for (layer, inputs), gradient in zip(seen, gradients, strict=True)
            if gradient is not None and all_finite(gradient)
        ]

    def _score(self, outputs: Any, batch: Any, name: str | None) -> Tensor:
        """Return a random vector whose covariance is the Fisher information of the outputs, the same at each call."""
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(f"Expected outputs of floating-point numbers, got {type(outputs).__name__}.")
        if self._likelihood is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the profile tells what it takes
                self._likelihood = guess_likelihood(outputs, batch, name)
        generator = torch.Generator(outputs.device).manual_seed(0)
        return self._likelihood.score(outputs.detach(), batch, generator)
