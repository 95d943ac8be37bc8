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

which implies :math:`t \ge 0` and :math:`\sum t_l \le 1`; `newton_path` solves it. Any P and :math:`\lambda` with
Q - P positive definite prove a bound, optimal or not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .blocks import BlockStructure
from .difference_form import DifferenceForm
from .dual_barrier import DualBarrier
from .problem import Array
from .separable import Start


@dataclass(frozen=True, eq=False)
class Convexification:
    """What a convexification proves.

    Attributes:
        bound: Lower bound for the form's integer program.
        conditional: For each variable the lower bound if its candidate is chosen, shape [n].
        reference_conditional: For each block the lower bound if its reference is chosen.
        point: Relaxed solution t, shape [n].
        last: Where the search for it stopped, for another one to begin at.
    """

    bound: float
    conditional: Array
    reference_conditional: Array
    point: Array
    last: Start

    @classmethod
    def nothing(cls, form: DifferenceForm, start: Start) -> Convexification:
        """Return one that proves nothing yet."""
        lowest = np.full(form.size, -np.inf)
        return cls(-np.inf, lowest, lowest[: len(form.group)], np.zeros(form.size), start)

    def improved(self, barrier: DualBarrier, mu: float) -> Convexification:
        """Return the better of what this and a point of the dual cone prove."""
        bound = barrier.bound()
        conditional, references = barrier.conditional(bound)
        better = bound > self.bound
        return replace(
            self,
            bound=max(bound, self.bound),
            conditional=np.maximum(conditional, self.conditional),
            reference_conditional=np.maximum(references, self.reference_conditional),
            point=barrier.point if better else self.point,
            last=Start(barrier.hessian, barrier.multipliers, mu),
        )


def carried(before: DifferenceForm, start: Start, form: DifferenceForm) -> Start:
    """Return a point of the dual cone of one form as a point of that of another one on fewer candidates.

    The convexified objective is the same function, only on fewer points. Where the reference of a group
    changes from r to s, variables change by ``e_a - e_s = (e_a - e_r) - (e_s - e_r)``.
    """
    structure, old = BlockStructure(form.block), BlockStructure(before.block)
    place = {}
    for blocks, index in zip(start.hessian, old.index, strict=True):
        for block, variables in zip(blocks, index, strict=True):
            place[int(before.group[before.block[variables[0]]])] = (block, before.candidate[variables])
    hessian = [np.empty((len(index), index.shape[1], index.shape[1])) for index in structure.index]
    for blocks, index in zip(hessian, structure.index, strict=True):
        for number, variables in enumerate(index):
            group = int(form.group[form.block[variables[0]]])
            block, candidates = place[group]
            change = (candidates[:, None] == form.candidate[variables]).astype(float)
            change -= (candidates == form.reference[group])[:, None]
            blocks[number] = change.T @ block @ change
    prices = dict(zip(before.binding.tolist(), start.multipliers.tolist(), strict=True))
    least = float(start.multipliers.min(initial=1e-300))
    multipliers = np.array([prices.get(row, least) for row in form.binding.tolist()])
    return Start(hessian, multipliers, start.mu)
