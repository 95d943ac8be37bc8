"""Several near-optimal policies that truly differ, for measuring the best few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..curvature.taylor_model import TaylorModel
from ..errors import InfeasibleBudgetError
from ..policy import BitPolicy
from .allocation import Allocation
from .budget import Budget
from .preparation import Preparation
from .rules import Rules
from .solver.milp import Solver
from .solver.problem import Indices


def alternatives(
    taylor: TaylorModel,
    budget: Budget,
    k: int = 3,
    *,
    min_changes: int | None = None,
    apart_from: Sequence[BitPolicy] = (),
    rules: Rules | None = None,
    solver: Solver = "highs",
    time_limit: float = 10.0,
    gap: float = 1e-3,
    seed: int = 0,
) -> list[Allocation]:
    """Return the best policy, then the best that differs from all before in at least so many decisions, and so on.

    "Differs in at least d of L decisions from a policy" is one more linear budget: at most L - d of that policy's
    choices. So each alternative carries a certificate like any other policy.

    Args:
        taylor: Predicts the loss of every policy.
        budget: What every policy may cost.
        k: How many policies.
        min_changes: In how many decisions policies must differ; a tenth of them, at least 1, by default.
        apart_from: Policies that are known already: those that are returned differ from them as from each other.
        rules: What every policy must look like.
        solver: python-mip backend.
        time_limit: Seconds for each policy.
        gap: Relative gap that ends each search.
        seed: Decides every random choice.

    Returns:
        At most k policies, fewer if there are no more.

    Raises:
        ValueError: If k or min_changes is not positive, or a known policy is none under the rules.
        InfeasibleBudgetError: If there is not even one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_mpq import Categorical, profile
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> taylor = profile(net, torch.randn(256, 8).split(32), bits=[2, 4, 8], likelihood=Categorical())
        >>> best, second = alternatives(taylor, Budget(average_bits=6), k=2)
        >>> best.policy == second.policy, best.predicted_loss <= second.predicted_loss
        (False, True)
    """
    prepared = Preparation.make(taylor, budget, rules)
    groups = prepared.problem.group_count
    changes = max(1, groups // 10) if min_changes is None else min_changes
    if k < 1 or changes < 1:
        raise ValueError(f"k and min_changes must be at least 1, got {k} and {changes}.")
    found = [_selection(prepared, policy) for policy in apart_from]
    answers: list[Allocation] = []
    while len(answers) < k:
        problem = _apart(prepared, found, changes)
        try:
            solution = problem.solve(
                gap=gap, reference=prepared.reference, time_limit=time_limit, solver=solver, seed=seed
            )
        except InfeasibleBudgetError:
            if not found:
                raise
            break
        found.append(solution.selection)
        kept = replace(solution, prices=solution.prices[: len(prepared.reduction.bounded)])
        answers.append(prepared.allocation(kept, None, "quadratic"))
    return answers


def _selection(prepared: Preparation, policy: BitPolicy) -> Indices:
    """Return the selection of a policy."""
    selection = prepared.reduction.selection(prepared.taylor.indices(policy))
    if selection is None:
        raise ValueError(f"The known policy {policy.bits()} breaks the rules; pass the rules that it was made under.")
    return selection


def _apart(prepared: Preparation, selections: list[Indices], changes: int) -> Preparation:
    """Return the problem with one more budget a selection: at most L - changes of its choices."""
    problem = prepared.problem
    rows = np.zeros((len(selections), len(problem.group)))
    for row, selection in zip(rows, selections, strict=True):
        row[selection] = 1
    limits = np.full(len(selections), float(problem.group_count - changes))
    apart = replace(problem, rows=np.vstack([problem.rows, rows]), limits=np.append(problem.limits, limits))
    return replace(prepared, problem=apart)
