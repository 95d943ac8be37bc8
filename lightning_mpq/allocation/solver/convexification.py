r"""The best block convexification: a lower bound for the integer program, indefinite curvature included.

In one group at most one variable is 1, so on integer points :math:`t_a t_b = 0` (a, b in one block) and
:math:`t_a^2 = t_a`. Hence for **any** symmetric block-diagonal P

.. math:: f(t) = \tfrac12 t^T (Q - P) t + (c + \tfrac12 \operatorname{diag} P)^T t + \text{const},

and with :math:`Q - P \succ 0`, multipliers :math:`\lambda \ge 0` of the budgets, the minimum over free t,

.. math:: g(P, \lambda) = \text{const} - \lambda^T b - \tfrac12 q^T (Q - P)^{-1} q, \qquad
          q = c + \tfrac12 \operatorname{diag} P + A^T \lambda,

is a lower bound: nothing of an indefinite Q is thrown away. (Quadratic convex reformulation: Billionnet,
Elloumi, Plateau, Discrete Applied Mathematics 157, 2009; here with full blocks and without the equations.)
The best P and :math:`\lambda` solve the dual of a semidefinite program over
:math:`Y = \begin{pmatrix} 1 & t^T \\ t & X \end{pmatrix} \succeq 0`:

.. math:: \min \tfrac12 \langle Q, X \rangle + c^T t \quad\text{s.t.}\quad
          X_{ll} = \operatorname{Diag}(t_l)\ \text{(each block)}, \quad A t + s = b,\ s \ge 0,

which implies :math:`t \ge 0` and :math:`\sum t_l \le 1`; `primal_dual` solves it. Any P and :math:`\lambda` with
Q - P positive definite prove a bound, optimal or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .difference_form import DifferenceForm
from .problem import Array


@dataclass(frozen=True, eq=False)
class Convexification:
    """What a convexification proves.

    Attributes:
        bound: Lower bound for the form's integer program.
        conditional: For each variable the lower bound if its candidate is chosen, shape [n].
        reference_conditional: For each block the lower bound if its reference is chosen.
        point: Relaxed solution t, shape [n].
        upper: Value of the relaxation (no bound can exceed it) as far as it is known.
        shift: P, shape [n, n], block diagonal.
        multipliers: Price of each budget of the form, in loss per unit.
    """

    bound: float
    conditional: Array
    reference_conditional: Array
    point: Array
    upper: float
    shift: Array
    multipliers: Array


def tangent_bound(form: DifferenceForm, curved: Array, q: Array, point: Array) -> float:
    r"""Return what of a lower bound depends on the point t where the convex program is linearised.

    With H = Q - P positive semidefinite the tangent at any t, minimised over the simplices, is a bound:

    .. math:: \text{const} - \lambda^T b - \tfrac12 t^T H t + \sum_l \min\big(0, \min_{i \in l} r_i\big),
              \qquad r = H t + q.

    At the minimiser t = -H^-1 q the residual r is zero and this is g(P, lambda); an inexact t, from an
    ill-conditioned H, only lowers it, so that rounding cannot flatter the bound.

    Args:
        form: The program.
        curved: H t.
        q: Its linear term, P and prices included.
        point: t.

    Returns:
        The last two terms.
    """
    starts = np.searchsorted(form.block, np.arange(len(form.group)))
    return float(np.minimum(0.0, np.minimum.reduceat(curved + q, starts)).sum() - point @ curved / 2)


def unknowns(form: DifferenceForm) -> int:
    """Return how many unknowns the Newton system of `convexify` has: it takes time with the cube of them."""
    lengths = np.bincount(form.block)
    return int((lengths * (lengths + 1) // 2).sum()) + len(form.limits) + 1
