r"""The Fisher information where samples act on each other, as through the batch statistics of BatchNorm.

Only the score of a whole batch has a meaning then. With independent v_n of covariance H_n it is

    s_i = sum_n <v_n, J_n D_i> = <d (sum_n <v_n, outputs_n>) / d weight, D_i>,

whose square has the expectation ``sum_n D_i^T J_n^T H_n J_n D_i``: one ordinary backward pass for each draw, whatever
the layers are and however they use their weights. One score for each batch instead of each sample is noisy, so that
small batches and several draws are called for.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Generator

from ...network.evaluator import Evaluator, not_differentiable
from ...network.likelihood import Likelihood
from .input_perturbation import InputPerturbations
from .input_probes import InputProbes
from .measurement import Measurement
from .perturbation import Perturbations
from .weights import scores_of_backward, substituted, weight_variables


class BatchScores:
    """Measures scores of whole batches; the gradient of the divergence is zero."""

    def __init__(
        self,
        evaluator: Evaluator,
        perturbations: Perturbations,
        likelihood: Likelihood,
        draws: int = 1,
        inputs: InputPerturbations | None = None,
    ) -> None:
        """Prepare; see `SampleScores` for the arguments."""
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._likelihood = likelihood
        self._draws = draws
        self._inputs = inputs

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return the scores of a batch as one unit.

        Raises:
            ValueError: If the outputs carry no gradient.
        """
        variables = weight_variables(self._perturbations)
        probes = InputProbes(self._inputs, self._perturbations.device)
        with substituted(self._perturbations, variables), probes.attached():
            outputs = self._evaluator.outputs(batch)
            if not outputs.requires_grad:
                raise not_differentiable("outputs do")
            found = []
            for draw in range(self._draws):
                slope = self._likelihood.score(outputs.detach(), batch, generator)
                again = draw + 1 < self._draws
                found.append(scores_of_backward(self._perturbations, variables, probes, outputs, slope, again))
        scores = torch.stack(found)
        samples = outputs.shape[0]
        return Measurement(samples, rows=scores[None] / sqrt(self._draws * samples))
