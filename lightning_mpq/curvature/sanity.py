"""A law that every divergence must keep: more bits in one group cannot do more damage than fewer."""

from __future__ import annotations

import warnings
from itertools import combinations
from math import sqrt
from typing import NamedTuple

from .model import TaylorModel


class OrderViolation(NamedTuple):
    """Two candidates of one group whose predicted damage is in the wrong order.

    Attributes:
        fewer: Position of the candidate with fewer bits.
        more: Position of the one with more bits, which is predicted to be worse.
        excess: By how much, in loss.
        error: Standard error of that difference as if the two erred independently; 0 if unknown.
    """

    fewer: int
    more: int
    excess: float
    error: float


def order_violations(taylor: TaylorModel, standard_errors: float = 2.0) -> list[OrderViolation]:
    """Return where a group alone is predicted to do worse with more bits, beyond its standard error.

    It happens where a rounding is unlucky, or where the samples are too few; schemes of equal bits are not
    compared, and the task loss may do so lawfully.

    Args:
        taylor: A model of the divergence.
        standard_errors: How many standard errors are put down to chance.
    """
    alone = (taylor.gradient + taylor.curvature.diagonal() / 2).tolist()
    errors = [0.0] * len(alone)
    if taylor.curvature_error is not None:
        errors = (taylor.curvature_error.diagonal() / 2).tolist()
    found = []
    for one, other in combinations(range(len(alone)), 2):
        first, second = taylor.candidates[one], taylor.candidates[other]
        if first.group != second.group or first.scheme.bits == second.scheme.bits:
            continue
        fewer, more = (one, other) if first.scheme.bits < second.scheme.bits else (other, one)
        excess, error = alone[more] - alone[fewer], sqrt(errors[one] ** 2 + errors[other] ** 2)
        if excess > standard_errors * error + 1e-12 * abs(alone[fewer]):
            found.append(OrderViolation(fewer, more, excess, error))
    return found


def warn_of_wrong_order(taylor: TaylorModel) -> None:
    """Name the groups that are predicted to do worse with more bits, which no divergence can mean."""
    violations = order_violations(taylor) if taylor.loss == "divergence" else []
    if violations:
        worst = max(violations, key=lambda found: found.excess)
        names = sorted({taylor.candidates[found.more].group for found in violations})
        warnings.warn(
            f"More bits are predicted to do more damage than fewer in {', '.join(names)}; most of all "
            f"{taylor.describe(worst.more)} by {worst.excess:.3g} above {taylor.describe(worst.fewer)} (standard error "
            f"{worst.error:.3g}). Calibrate on more samples if that matters to the plan.",
            UserWarning,
            stacklevel=3,
        )
