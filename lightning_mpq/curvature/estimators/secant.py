r"""Curvature from real steps: ``G_ij = mean u_i^T H u_j`` with ``u_i = f(w + D_i) - f(w)``.

A secant takes the place of the derivative J D_i of `gauss_newton`: no automatic differentiation, hence any operation
at all, and the size of the step is seen where few bits make it large.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .gauss_newton import GaussNewton
from .weights import substituted


class Secant(GaussNewton):
    """Measures the output changes of all candidates by running each one; see `GaussNewton`."""

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
