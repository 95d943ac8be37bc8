"""What is known of a layer from few samples, told by letting one part of them judge what was fitted to the other.

A weight that is fitted to the samples at hand, as a target or by error feedback, makes up for their chance too. How far
it should go is chosen for each layer by two-fold cross-validation (M. Stone, "Cross-Validatory Choice and Assessment of
Statistical Predictions", J. R. Stat. Soc. B 36, 1974) of the mean squared output error. That takes nothing but the
moments of both parts: a weight T has the error ``tr(T M T^T) - 2 tr(W X T^T)`` and a constant on a part whose mean of
z z^T is M and whose mean of x z^T is X.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

from torch import Tensor

from ..quantizers.damped_moment import OrderedMoment, type_to_factorise
from ..quantizers.unseen_error import relative_cost, unit_errors
from .joint_moments import JointMoment, is_projected

DAMPINGS = (0.01, 0.04, 0.16, 0.64, 2.56, 10.24)
"""In units of the mean of the moment's diagonal; at the last one hardly any error is fed on."""
_ROWS = 128
"""So many rows of a weight tell how far it should be pulled."""


class Fit(NamedTuple):
    """How far a layer is fitted to its samples.

    Attributes:
        strength: s in W + s (W' - W): how far the weight is pulled towards the outputs of the float model.
        ridge: Damping of the target W', in units of the mean of the moment's diagonal.
        feedback: Damping of error feedback, in the same units.
    """

    strength: float
    ridge: float
    feedback: float

    def with_twice_the_samples(self) -> Fit:
        """Return what to choose with twice the samples, by which the variance of all chance is halved.

        Dampings are halved, and s = a / (a + v), with a what is right in the step and v what is chance, becomes
        a / (a + v / 2).
        """
        return Fit(2 * self.strength / (1 + self.strength), self.ridge / 2, self.feedback / 2)


FIXED = Fit(1.0, 0.01, 0.01)
"""Where there are no two parts to choose by."""


def target(weights: Tensor, moment: JointMoment, fit: Fit) -> Callable[[Tensor], Tensor]:
    """Return a function of W that returns W + s (W' - W) with W' = (W X + d W) (M + d I)^-1.

    X is the mean of x z^T and M that of z z^T. Rows do not see each other: the function takes some of them too, unless
    the moment knows what the weight makes of a shift (`is_projected`).

    Args:
        weights: The whole of W, [groups, rows, columns].
        moment: M, and X - M.
        fit: s, and d in units of the mean of M's diagonal.
    """
    if not fit.strength or moment.shift is None:
        return lambda some: some
    wide = type_to_factorise(moment.own, fit.ridge, weights.dtype)
    damped = OrderedMoment.of(moment.own.to(wide)).damped(fit.ridge)
    shift, known = moment.shift.to(wide), is_projected(weights.shape)

    def aim(some: Tensor) -> Tensor:
        pull = shift if known else some.to(wide) @ shift  # the step from W to W', times M + d I
        return some + damped.solve(pull).mul_(fit.strength).to(some.dtype)

    return aim


class Half(NamedTuple):
    """One part of the samples, and what it says of a few rows of the weight, in single precision.

    Attributes:
        own: Mean of z z^T.
        pull: W (X - M); None where rows are not paired.
        rows: How many it is the mean of.
    """

    own: OrderedMoment
    pull: Tensor | None
    rows: int

    @classmethod
    def of(cls, weights: Tensor, part: JointMoment) -> Half:
        """Take from a moment what tells how far to fit: a choice among a few needs no more.

        Args:
            weights: W, [groups, rows, columns].
            part: The moment.
        """
        step = max(1, weights.shape[1] // _ROWS)
        return cls(OrderedMoment.of(part.own.float()), part.pull(weights, step), part.rows)


@dataclass
class _Sums:
    """What the parts say of one damping.

    Attributes:
        gained: Sum of tr(D (X - M)^T W^T) over parts, for the steps D = W' - W that the other part asks for.
        spent: Sum of tr(D M D^T).
        noise: What unit rounding errors cost under error feedback by the other part, as a share of their cost when
            nothing is fed on.
    """

    gained: float = 0.0
    spent: float = 0.0
    noise: float = 0.0

    @property
    def strength(self) -> float:
        """The s with the least error, within 0 .. 1."""
        return min(max(self.gained / self.spent, 0.0), 1.0) if self.spent > 0 else 0.0

    @property
    def gain(self) -> float:
        """By how much that s lowers the error."""
        return 2 * self.strength * self.gained - self.strength**2 * self.spent


def choose_fit(halves: Sequence[Half]) -> Fit:
    """Choose how far to fit a layer to half of its samples, by what the other half says of it."""
    parts, columns = halves[0].own.order.shape
    signs = unit_errors(halves[0].own.matrix, columns).expand(parts, -1, -1)
    # The fewer rows for each column, the more damping is likely, and each costs a factorisation of both halves.
    wanted = columns / min(half.rows for half in halves)
    first = min(range(len(DAMPINGS)), key=lambda number: abs(log(DAMPINGS[number] / wanted)))
    tried = {first: _judged(signs, halves, DAMPINGS[first])}
    for direction in (range(first + 1, len(DAMPINGS)), reversed(range(first))):
        for number in direction:
            before, last = list(tried.values()), _judged(signs, halves, DAMPINGS[number])
            tried[number] = last
            if _is_worse(last, before):
                break
    pull = max(tried, key=lambda number: tried[number].gain)
    feedback = min(tried, key=lambda number: tried[number].noise)
    return Fit(tried[pull].strength, DAMPINGS[pull], DAMPINGS[feedback])


def _is_worse(last: _Sums, before: Sequence[_Sums]) -> bool:
    """Tell whether the last damping is worse than one before in every respect: errors have one minimum."""
    return last.gain <= max(each.gain for each in before) and last.noise >= min(each.noise for each in before)


def _judged(signs: Tensor, halves: Sequence[Half], damping: float) -> _Sums:
    sums = _Sums()
    for fitted, judge in (halves, reversed(halves)):
        damped = fitted.own.damped(damping)
        if fitted.pull is not None and judge.pull is not None:
            step = damped.solve(fitted.pull)
            sums.gained += float((step * judge.pull).sum())
            sums.spent += float(judge.own.cost(step).sum())
        sums.noise += relative_cost(damped.fed_on(signs), judge.own)
    return sums
