r"""Curvature from real steps: ``G_ij = mean u_i^T H u_j`` with ``u_i = f(w + D_i) - f(w)``.

A secant takes the place of the derivative J D_i of `gauss_newton`: no automatic differentiation, hence any operation
at all, and the size of the step is seen where few bits make it large.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Estimator, Setting
from .gauss_newton import OutputChanges
from .weights import substituted


class OutputSteps(OutputChanges):
    """Measures the output changes of all candidates by running each one; see `OutputChanges`."""

    def rows(self, batch: Any) -> Tensor:
        """Return ``L^T u_i``, [N, outputs, K]."""
        with torch.no_grad():
            return self._by_candidate(self._evaluator.outputs(batch), batch)

    def _changes(self, outputs: Tensor, batch: Any) -> Iterator[tuple[int, Tensor]]:
        """Yield each candidate with ``f(w + D_i) - f(w)``."""
        for index in range(self._perturbations.count):
            moved = {
                layer: self._perturbations.weight(layer) + delta
                for layer, delta in self._perturbations.of_candidate(index).items()
            }
            with substituted(self._perturbations, moved):
                yield index, self._evaluator.outputs(batch) - outputs
        if (inputs := self._inputs) is None:
            return
        for index in range(inputs.count):
            touched = inputs.touched(index)

            def rounded(layer: str, x: Tensor, index: int = index, touched: list[str] = touched) -> Tensor:
                return inputs.rounded(layer, index, x) if layer in touched else x

            with inputs.changed(rounded):
                yield self._perturbations.count + index, self._evaluator.outputs(batch) - outputs


@dataclass(frozen=True)
class Secant(Estimator):
    """As `GaussNewton`, by finite steps: sees how large a step few bits make."""

    name = "secant"
    sees_inputs = True

    def start(self, setting: Setting) -> OutputSteps:
        """See `Estimator.start`."""
        known = setting.known_likelihood()
        return OutputSteps(setting.evaluator, setting.perturbations, known, setting.interacting, setting.inputs)
