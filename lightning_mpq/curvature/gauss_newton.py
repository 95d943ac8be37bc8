r"""The Gauss-Newton matrix along all candidates: ``G_ij = mean u_i^T H u_j`` with ``u_i = J D_i``.

H is the Fisher information of the outputs (see likelihood.py), so that G is the Hessian of the divergence from the
float model and what `fisher` estimates by sampling (N. N. Schraudolph, Fast Curvature Matrix-Vector Products for
Second-Order Gradient Descent, Neural Computation 14, 2002). Needs a second derivative or a
forward-mode one from every operation behind a quantized layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from .batches import Evaluator
from .forward_mode import Linearization, output_change
from .likelihood import Likelihood
from .moments import WeightedMoments, sums_of_products
from .perturbation import Perturbations
from .weights import substituted, twice_differentiable, weight_variables


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
        self._by_forward_mode = not twice_differentiable(evaluator.model)

    def update(self, batch: Any, generator: Generator) -> int:
        """Add the samples of a batch and return their number."""
        rows = torch.stack(list(self._whitened_changes(batch)), 2)  # [N, outputs, K]
        wide = rows.to("cpu", torch.float64) if rows.device.type == "mps" else rows.double()
        self.curvature.update(*sums_of_products(wide), len(wide))
        return len(wide)

    def _whitened_changes(self, batch: Any) -> Iterator[Tensor]:
        """Yield ``L^T u_i``, [N, outputs], for each candidate; inner products are those of u_i in H = L L^T."""
        variables = weight_variables(self._perturbations)
        with substituted(self._perturbations, variables):
            outputs = self._evaluator.outputs(batch)
            plain = outputs.detach()
            linear = None if self._by_forward_mode else Linearization(outputs, variables, self._perturbations)
            for index in range(self._perturbations.count):
                if linear is not None:
                    try:
                        yield self._whitened(plain, linear.output_change(index), batch)
                        continue
                    except (RuntimeError, NotImplementedError):  # an operation without a second derivative
                        self._by_forward_mode, linear = True, None
                yield self._whitened(plain, output_change(self._evaluator, self._perturbations, index, batch), batch)

    def _whitened(self, outputs: Tensor, change: Tensor, batch: Any) -> Tensor:
        with torch.no_grad():
            return self._likelihood.root_transpose_product(outputs, change, batch).flatten(1)
