r"""The Gauss-Newton matrix along all candidates: ``G_ij = mean u_i^T H u_j`` with ``u_i = J D_i``.

H is the Fisher information of the outputs (see likelihood.py), so that G is the Hessian of the divergence from the
float model and what `fisher` estimates by sampling (N. N. Schraudolph, Fast Curvature Matrix-Vector Products for
Second-Order Gradient Descent, Neural Computation 14, 2002). Works for every layer with a forward-mode derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from .evaluator import Evaluator
from .forward_mode import output_change
from .likelihood import Likelihood
from .moments import WeightedMoments, sums_of_products
from .perturbation import Perturbations


class GaussNewton:
    """Measures the curvature of the divergence exactly on the given samples; its gradient is zero.

    One batch holds the changes of its outputs for all K candidates: choose ``chunk_size`` accordingly.

    Attributes:
        curvature: Moments of ``u_ni^T H_n u_nj`` over samples n, [K, K].
    """

    def __init__(self, evaluator: Evaluator, perturbations: Perturbations, likelihood: Likelihood) -> None:
        """Start from nothing."""
        self.curvature = WeightedMoments((perturbations.count, perturbations.count))
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._likelihood = likelihood

    def update(self, batch: Any, generator: Generator) -> int:
        """Add the samples of a batch and return their number."""
        with torch.no_grad():
            outputs = self._evaluator.outputs(batch)
            whitened = [self._whitened(outputs, index, batch) for index in range(self._perturbations.count)]
            stacked = torch.stack(whitened, 2)  # [N, outputs, K]
            wide = stacked.to("cpu", torch.float64) if stacked.device.type == "mps" else stacked.double()
            self.curvature.update(*sums_of_products(wide), len(wide))
        return len(wide)

    def _whitened(self, outputs: Tensor, index: int, batch: Any) -> Tensor:
        """Return ``L^T u_i``, [N, outputs], whose inner products are those of u_i in the metric H = L L^T."""
        change = self._change(outputs, index, batch)
        return self._likelihood.root_transpose_product(outputs, change, batch).flatten(1)

    def _change(self, outputs: Tensor, index: int, batch: Any) -> Tensor:
        """Return the change of the outputs along candidate ``index``."""
        return output_change(self._evaluator, self._perturbations, index, batch)
