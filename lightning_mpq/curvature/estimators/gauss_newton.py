r"""The Gauss-Newton matrix along all candidates: ``G_ij = mean u_i^T H u_j`` with ``u_i = J D_i``.

H is the Fisher information of the outputs (see likelihood.py), so that G is the Hessian of the divergence from the
float model and what `fisher` estimates by sampling (N. N. Schraudolph, Fast Curvature Matrix-Vector Products for
Second-Order Gradient Descent, Neural Computation 14, 2002).

With ``H = L L^T`` all that is needed is ``L^T J D_i``, and there are two exact ways to it. From the outputs: its entry
o is ``<L e_o, J D_i>``, the score of `fisher` along the output gradient ``L e_o``, so that one backward pass for each
output of a sample yields all K candidates. From the candidates: one tangent for each, whatever the number of outputs,
by forward mode. The cheaper one is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from ...network.evaluator import Evaluator
from ...network.likelihood import Likelihood
from .base import Estimator, Setting
from .batched_forward_mode import BatchedForwardMode
from .fisher import SampleScores
from .forward_mode import input_change
from .input_perturbation import InputPerturbations
from .measurement import Measurement
from .perturbation import Perturbations

_PASSES_PER_OUTPUT = 4
"""Forward passes that one backward pass and the scores of all candidates along it cost, where a tangent costs one."""


class OutputChanges:
    """Measures the curvature of the divergence exactly on the given samples; its gradient is zero.

    One batch holds ``L^T J D_i``, [N, outputs], for all K candidates: choose ``chunk_size`` accordingly.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        perturbations: Perturbations,
        likelihood: Likelihood,
        whole_batches: bool = False,
        inputs: InputPerturbations | None = None,
    ) -> None:
        """Prepare.

        Args:
            evaluator: Runs the model.
            perturbations: All candidates.
            likelihood: What the outputs mean.
            whole_batches: Whether samples act on each other, so that outputs of one depend on the others' inputs.
            inputs: What schemes do to inputs, whose columns come after those of weights; None for no such columns.
        """
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._likelihood = likelihood
        self._whole_batches = whole_batches
        self._forward_mode = BatchedForwardMode(evaluator, perturbations)
        self._inputs = inputs
        self._count = perturbations.count + (0 if inputs is None else inputs.count)
        self._backward = SampleScores(evaluator, perturbations, likelihood, inputs=inputs)

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return ``L^T J D_i`` of each sample."""
        rows = self.rows(batch)
        return Measurement(len(rows), rows=rows)

    def rows(self, batch: Any) -> Tensor:
        """Return ``L^T J D_i``, [N, outputs, K]: their inner products over outputs are those of u in the metric H."""
        with torch.no_grad():
            outputs = self._evaluator.outputs(batch)
        count = outputs[0].numel()
        if not self._whole_batches and _PASSES_PER_OUTPUT * count <= self._count:
            with torch.enable_grad():
                return self._backward.scores_along(batch, count, lambda o: self._roots(o, batch)).transpose(0, 1)
        with torch.no_grad():
            return self._by_candidate(outputs, batch)

    def _by_candidate(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return `rows` from the change of the outputs along each candidate."""
        rows = outputs.new_empty(self._count, len(outputs), outputs[0].numel())
        for index, change in self._changes(outputs, batch):
            root = self._likelihood.root_transpose_product(outputs, change, batch)
            rows[index] = root.reshape(rows.shape[1:])
        return rows.permute(1, 2, 0)

    def _roots(self, outputs: Tensor, batch: Any) -> Iterator[Tensor]:
        """Yield ``L e_o`` for each output o of a sample, shaped like the outputs."""
        for position in range(outputs[0].numel()):
            unit = torch.zeros_like(outputs, memory_format=torch.contiguous_format)
            unit.view(len(outputs), -1)[:, position] = 1
            yield self._likelihood.root_product(outputs, unit, batch)

    def _changes(self, outputs: Tensor, batch: Any) -> Iterator[tuple[int, Tensor]]:
        """Yield each candidate with the change of the outputs along it."""
        first = self._perturbations.count
        yield from self._forward_mode.changes(range(first), batch)
        if self._inputs is not None:
            for index in range(self._inputs.count):
                yield first + index, input_change(self._evaluator, self._inputs, index, batch)


@dataclass(frozen=True)
class GaussNewton(Estimator):
    """The Gauss-Newton matrix, exact on the given samples: what `Fisher` estimates by sampling."""

    name = "gauss_newton"
    sees_inputs = True

    def start(self, setting: Setting) -> OutputChanges:
        """See `Estimator.start`."""
        known = setting.known_likelihood()
        return OutputChanges(setting.evaluator, setting.perturbations, known, setting.interacting, setting.inputs)
