r"""A bound from one factorisation, and what it screens: the pairs' smallest eigenvalue is taken from the groups.

With B the diagonal blocks of Q, E the rest and s at least :math:`-\lambda_{\min}(B^{-1/2} E B^{-1/2})`, the matrix
H = E + s B is positive semidefinite, and P = (1 - s) B a block convexification (see `convexification`; Hammer, Rubin,
Some Remarks on Quadratic Programming with 0-1 Variables, RIRO 4, 1970, for the diagonal). Where pairs are weak s is
small and nearly all of the objective stays exact. The convex program that is left is minimised over the simplices by
conditional gradients (Frank, Wolfe, Naval Research Logistics Quarterly 3, 1956): the tangent at each point is a
separable program, hence a bound, and its reduced costs are bounds for every candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg as sla

from .blocks import BlockStructure
from .clock import Clock
from .difference_form import DifferenceForm
from .problem import Array
from .separable import first_multipliers, pull_of_pairs, separable_centre

_ROOM = 1.03
"""The shift exceeds the estimated eigenvalue by so much."""
_STEPS = 30
"""Conditional gradients."""
_SMOOTHING = 1e-4
"""The barrier that the separable programs are solved with, relative to the objective."""


@dataclass(frozen=True, eq=False)
class ShiftedBound:
    """What the shift proves: a bound, and one for each variable and for each block's reference."""

    bound: float
    conditional: Array
    reference_conditional: Array


def eigenvalue_shift(form: DifferenceForm, clock: Clock, scale: float, cutoff: float) -> ShiftedBound | None:
    """Return the best tangent bounds; None if there is no time, or pairs outweigh the groups.

    Args:
        form: The program; t = 0 should be a good selection.
        clock: Asked before the factorisation and each step.
        scale: Magnitude of the objective.
        cutoff: A bound that is enough.
    """
    if not scale or not len(form.limits) or not clock.fits(float(form.size) ** 3 / 2):
        return None
    structure = BlockStructure(form.block)
    own = structure.gather(form.quadratic)
    try:
        share = _ROOM * max(pull_of_pairs(form, structure, own, own), 0.0) + 1e-9
    except np.linalg.LinAlgError:
        return None
    if share >= 1 or not _is_positive(form, structure, [share * block for block in own]):
        return None
    slope = form.linear + (1 - share) * form.quadratic.diagonal() / 2
    mu = _SMOOTHING * scale / form.size
    point, curved, multipliers = np.zeros(form.size), np.zeros(form.size), first_multipliers(form)
    best, variables = -np.inf, np.full(form.size, -np.inf)
    references = np.full(len(form.group), -np.inf)
    for _ in range(_STEPS):
        try:
            corner, _, multipliers = separable_centre(form, curved + slope, mu, multipliers)
        except np.linalg.LinAlgError:  # budgets that nothing keeps together have no best prices
            break
        reduced = curved + slope + multipliers @ form.rows
        least = np.minimum(0.0, np.minimum.reduceat(reduced, form.start))
        bound = float(form.constant - multipliers @ form.limits - point @ curved / 2 + least.sum())
        best = max(best, bound)
        variables = np.fmax(variables, bound + reduced - least[form.block])
        references = np.fmax(references, bound - least)
        if best >= cutoff or clock.out_of_time():
            break
        step = corner - point
        moved = form.quadratic @ step - (1 - share) * structure.times(own, step)
        length = min(1.0, -float((curved + slope) @ step) / max(float(step @ moved), 1e-300))
        if not length > 0:
            break
        point, curved = point + length * step, curved + length * moved
    return ShiftedBound(best, variables, references)


def _is_positive(form: DifferenceForm, structure: BlockStructure, blocks: list[Array]) -> bool:
    """Return whether the pairs with these blocks are positive definite."""
    matrix = form.quadratic.copy()
    structure.put(blocks, matrix)
    return bool(sla.lapack.dpotrf(matrix.T, lower=1, clean=0, overwrite_a=1)[1] == 0)
