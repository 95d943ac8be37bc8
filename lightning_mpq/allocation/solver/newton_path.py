"""Follow the central path of the dual barrier: truncated Newton steps while mu falls, a bound at each of them."""

from __future__ import annotations

import numpy as np

from .clock import Clock
from .convexification import Convexification, carried
from .difference_form import DifferenceForm
from .dual_barrier import DualBarrier
from .newton_system import newton_step
from .problem import Array
from .separable import Start, separable_start

_SHRINK = 0.4
"""mu falls by this factor once a point is near the maximiser."""
_NEAR = 1.0
"""Newton decrement, in units of sqrt(mu), below which a point is near."""
_FAR = 10.0
"""Masses beyond this, where 0 to 1 is right, tell that an earlier point is no place to begin at."""
_PATIENCE = 15
"""So many steps that bring a point no nearer to the maximiser of one mu end the path."""
_ARMIJO = 0.25
"""Share of the gain that the slope promises which a step must reach."""
_SHORTEST = 1e-4
"""Steps that must be cut to less than this make no progress."""
_STEP = 2.0
"""Operations of a Newton step, in units of those of a factorisation."""


def fits(size: int, clock: Clock) -> bool:
    """Return whether there is time to factorise a matrix of so many variables: the least that a bound takes."""
    return clock.fits(float(size) ** 3)


def convexify(
    form: DifferenceForm,
    clock: Clock,
    *,
    cutoff: float = np.inf,
    tolerance: float = 0.0,
    enough_dropped: float = 1.0,
    begin: tuple[DifferenceForm, Start] | None = None,
    max_steps: int = 100,
) -> Convexification | None:
    """Maximise the bound of the block convexification.

    Args:
        form: The program, with at least one variable.
        clock: Asked before each step; the best bound so far is returned once there is no time for another.
        cutoff: Stop as soon as the bound exceeds it: there is nothing better to be found here.
        tolerance: Stop when the bound is known to be this close to the best, or closer to it than a
            tenth of its distance to the cutoff.
        enough_dropped: Stop when conditional bounds drop this share of the candidates for the cutoff.
        begin: A form on more candidates and a point of its dual cone, to begin at.
        max_steps: Newton steps at most.

    Returns:
        The best bound of all steps; conditional bounds are the best of all steps, too. None if there is no
        time for a single step.
    """
    if not fits(form.size, clock):
        return None
    operations = _STEP * float(form.size) ** 3
    barrier, mu = _beginning(form, begin, tolerance)
    best = Convexification.nothing(form, Start(barrier.hessian, barrier.multipliers, mu)).improved(barrier, mu)
    steps = 0
    for _ in range(max_steps):
        distance = cutoff - best.bound if np.isfinite(cutoff) else 0.0
        dropped = float((best.conditional >= cutoff).sum()) / (form.size + len(form.group))
        if best.bound >= cutoff or dropped >= enough_dropped or steps >= _PATIENCE or not clock.fits(operations):
            break
        started = clock.now()
        base = (barrier.hessian, barrier.multipliers)
        newton = newton_step(barrier, mu, clock)
        if newton is None or not _search(barrier, base, *newton, mu, clock):
            break
        best = best.improved(barrier, mu)
        steps += 1
        clock.measured(operations, clock.now() - started)
        if newton[1] <= _NEAR * np.sqrt(mu):
            if mu * barrier.weight <= max(tolerance, 0.1 * distance):
                break
            mu *= _SHRINK
            steps = 0
    return best


def _beginning(
    form: DifferenceForm, begin: tuple[DifferenceForm, Start] | None, tolerance: float
) -> tuple[DualBarrier, float]:
    """Return a factorised point inside of the dual cone, and its mu: an earlier one if its masses make sense here."""
    least = tolerance / (form.size / 2 + len(form.limits))
    if begin is not None:
        start = carried(*begin, form)
        barrier = DualBarrier(form, start.hessian, start.multipliers)
        if barrier.factorise() and np.abs(barrier.point).max() <= _FAR:
            return barrier, max(start.mu, least)
    while True:
        start = separable_start(form, least)
        barrier = DualBarrier(form, start.hessian, start.multipliers)
        if barrier.factorise():
            return barrier, start.mu
        least = 2 * start.mu


def _search(
    barrier: DualBarrier,
    base: tuple[list[Array], Array],
    direction: Array,
    decrement: float,
    mu: float,
    clock: Clock,
) -> bool:
    """Halve a step until it stays inside of the cone and raises the barrier function; return whether one did."""
    before = barrier.value(mu)
    slope = _ARMIJO * decrement**2
    length = 1.0
    while length >= _SHORTEST:
        if barrier.move(base, direction, length) and barrier.value(mu) >= before + length * slope - 1e-12 * abs(before):
            return True
        if not clock.fits(barrier.operations):
            break
        length /= 2
    return False
