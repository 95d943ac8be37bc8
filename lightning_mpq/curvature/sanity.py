"""What a Taylor model must look like to be believed: bits help, many samples count, the network is near a minimum."""

from __future__ import annotations

from itertools import combinations
from math import sqrt
from typing import NamedTuple

import torch

from ..tools.warning import warn
from .taylor_model import TaylorModel

_UNSURE = 1 / 3
"""Standard error over loss above which little is known of what a layer's rounding does."""
_TAILED = 10.0
"""Times the variance of samples whose scores are normal, 2 / n of the squared mean, by which fewer of them decide."""


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
        if first.scheme.input != second.scheme.input:
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
        describe = taylor.choices.describe
        warn(
            f"More bits are predicted to do more damage than fewer in {', '.join(names)}; most of all "
            f"{describe(worst.more)} by {worst.excess:.3g} above {describe(worst.fewer)} (standard error "
            f"{worst.error:.3g}). Calibrate on more samples if that matters to the policy."
        )


def uncertainty(taylor: TaylorModel) -> float:
    """Return the standard error of the loss of rounding one layer over that loss, in the median; 0 if unknown."""
    if taylor.curvature_error is None:
        return 0.0
    loss, error = taylor.curvature.diagonal(), taylor.curvature_error.diagonal()
    heard = (loss > 0) & torch.isfinite(error)
    return float((error[heard] / loss[heard]).median()) if bool(heard.any()) else 0.0


def warn_of_few_that_decide(taylor: TaylorModel) -> None:
    """Say so where a few of many samples hold most of the loss, so that the policy hangs on them.

    With n samples of equal weight, a relative standard error of e is that of about 1 / e^2 that count.
    """
    error = uncertainty(taylor)
    if error > _UNSURE and error**2 > _TAILED * 2 / taylor.samples:
        warn(
            f"Few samples decide: of {taylor.samples:,} calibration samples no more than {1 / error**2:.2g} or so "
            f"make up what rounding a layer does to the loss (its standard error is {error:.0%} of it), as where the "
            "network is sure of nearly all others. Other samples may lead to other bits; calibrate on more, or on "
            "those that matter."
        )


def warn_far_from_minimum(model: TaylorModel) -> None:
    """Warn if the gradient, beyond its noise, outweighs the curvature in most groups at their largest step.

    Then the network was not trained to a minimum of this loss, and a second-order model says little about it.
    """
    if model.gradient_error is None:
        return
    largest: dict[str, int] = {}
    for index, candidate in enumerate(model.candidates):
        kept = largest.setdefault(candidate.group, index)
        if candidate.scheme.bits < model.candidates[kept].scheme.bits:
            largest[candidate.group] = index
    chosen = list(largest.values())
    slope, error = model.gradient[chosen].abs(), model.gradient_error[chosen]
    second = model.curvature.diagonal()[chosen].abs() / 2
    far = (slope > 3 * error) & (slope > second)
    if int(far.sum()) * 2 > len(chosen):
        worst = chosen[int((slope / error.clamp(min=1e-300)).argmax())]
        assert model.gradient_error is not None
        warn(
            f"The network is plainly not near a minimum of the task loss: in {int(far.sum())} of {len(chosen)} groups "
            "the gradient term exceeds three standard errors and the second-order term as well (for instance "
            f"{model.choices.describe(worst)}: {float(model.gradient[worst]):.3g} +- "
            f"{float(model.gradient_error[worst]):.2g} against {float(model.curvature[worst, worst]) / 2:.3g}). Train "
            "longer, check that the batches are training data, or use loss='divergence', which has no gradient."
        )
