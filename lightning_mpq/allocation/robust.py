r"""Robustness to noise in the Taylor model: the prediction plus a multiple of its standard error.

The variance of a prediction is itself a sum over candidates and pairs of candidates,
:math:`v(x) = \sum_i e_i^2 x_i + \tfrac12 \sum_{ij} E_{ij}^2 x_i x_j` (entries erring independently), and for
any :math:`\sigma > 0`

.. math:: \sqrt{v(x)} \le \frac{v(x)}{2 \sigma} + \frac{\sigma}{2}, \quad\text{with equality at } v(x) = \sigma^2.

So :math:`f(x) + \kappa \sqrt{v(x)}` is minimised by solving quadratic programs with
:math:`a + \kappa e^2 / 2 \sigma` and :math:`G + \kappa E^2 / 2 \sigma`, each at the standard error of the policy
before; every round lowers the robust objective or ends (majorisation-minimisation: Hunter, Lange, The American
Statistician 58, 2004).
"""

from __future__ import annotations

from typing import Any

from .allocation import Allocation
from .preparation import Preparation
from .solver.engine import Solution
from .solver.problem import Indices

_ROUNDS = 5
"""At most; each is one more quadratic program, and they end once the policy stays the same."""


def robust_allocation(
    prepared: Preparation, nominal: Solution, additive: Indices | None, multiple: float, **options: Any
) -> Allocation:
    """Minimise prediction plus ``multiple`` standard errors, and say how much the policy changed.

    The bound certifies the last quadratic program, which is nowhere below the robust objective and equal to
    it at the policy before; ``details["robust"]`` compares with the policy that ignores the errors.

    Args:
        prepared: The problem, with its nominal objective.
        nominal: Its solution.
        additive: The additive policy.
        multiple: How many standard errors are added.
        options: Passed to the solver.

    Raises:
        ValueError: If the Taylor model has no standard errors.
    """
    taylor = prepared.taylor
    if taylor.gradient_error is None or taylor.curvature_error is None:
        raise ValueError(
            "robust needs standard errors, but this Taylor model has none; profile with an estimator that "
            "reports them, or leave robust at 0."
        )
    gradient_variance = taylor.gradient_error.double().cpu().numpy() ** 2
    curvature_variance = taylor.curvature_error.double().cpu().numpy() ** 2

    def error_of(selection: Indices) -> float:
        error = taylor.entrywise_error(taylor.policy(prepared.reduction.indices(selection)))
        assert error is not None
        return error

    best, nominal_error = nominal, error_of(nominal.selection)
    error, offset = nominal_error, 0.0
    rounds = 0
    while rounds < _ROUNDS and error > 0:
        rounds += 1
        share = multiple / (2 * error)
        offset = multiple * error / 2
        problem = prepared.with_objective(
            taylor.gradient.numpy() + share * gradient_variance, taylor.curvature.numpy() + share * curvature_variance
        )
        found = problem.solve(start=best.selection, **options)
        settled = bool((found.selection == best.selection).all())
        best, error = found, error_of(found.selection)
        if settled:
            break
    nominal_policy = taylor.policy(prepared.reduction.indices(nominal.selection))
    policy = taylor.policy(prepared.reduction.indices(best.selection))
    changed = [name for name in policy if policy[name] != nominal_policy[name]]
    return prepared.allocation(
        best,
        additive,
        "quadratic",
        value=best.value + offset,
        lower_bound=best.bound + offset,
        reference=prepared.reference + multiple * nominal_error,
        details={
            "robust": {
                "multiple": multiple,
                "rounds": rounds,
                "standard_error": error,
                "objective": taylor.predict(policy).value + multiple * error,
                "nominal_loss": nominal.value,
                "nominal_standard_error": nominal_error,
                "nominal_objective": nominal.value + multiple * nominal_error,
                "nominal_bits": nominal_policy.bits(),
                "changed_groups": changed,
                "weights_changed": _weights_in(prepared, changed) / max(_weights_in(prepared, list(policy)), 1),
            }
        },
    )


def _weights_in(prepared: Preparation, names: list[str]) -> int:
    return sum(group.weight_count for group in prepared.taylor.groups if group.name in set(names))
