"""`allocate`: a Taylor model and a budget in, a policy with its certificate out."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from ..curvature.shrinkage import pairs_in_errors
from ..curvature.taylor_model import TaylorModel
from ..tools.checks import check_integer, check_one_of, is_number, shown
from ..tools.kinds import checked_kinds
from ..tools.progress import Progress
from .allocation import OBJECTIVES, Allocation, Objective
from .budget import Budget
from .fewest_bytes import fewest_bytes
from .preparation import Preparation
from .rules import Rules
from .solver.engine import silent
from .solver.milp import SOLVERS, Solver

_ADDITIVE_SHARE, _ADDITIVE_SECONDS = 0.3, 10.0
"""Of the time limit, and at most, for the additive policy, which the quadratic search starts from."""
_EXACT = 1e-6
"""Relative gap of the additive program where it is all there is to solve; solvers are no more exact."""
_NOTHING = 0.02
"""Pairs of groups whose root mean square is below so many standard errors count as zero: noise explains all but 2 % of
what was measured, and what shrinkage left of it moves a policy's loss by less than the default gap."""


@checked_kinds
def allocate(
    taylor: TaylorModel,
    budget: Budget,
    *,
    rules: Rules | None = None,
    objective: Objective = "quadratic",
    solver: Solver = "highs",
    time_limit: float = 10.0,
    gap: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Allocation:
    """Choose the candidate of each group that the loss suffers least from, within a budget, and prove it.

    Args:
        taylor: Predicts the loss of every policy.
        budget: What the policy may cost; with ``max_loss`` or ``within_uniform`` the policy of fewest bytes.
        rules: What the policy must look like.
        objective: ``"quadratic"`` minimises the whole prediction; ``"additive"`` leaves pairs of groups out, and is
            solved to the last bit. Where the model's pairs are zero within their standard errors that is done in either
            case, and ``details["pairs"]`` says why.
        solver: python-mip backend, ``"highs"`` or ``"cbc"``.
        time_limit: Seconds for the search; when they are up the best policy comes with the gap that is proved. At 0 a
            feasible policy still comes.
        gap: Relative gap that ends the search.
        seed: The result is the same for the same seed, unless the time limit cut the search short.
        progress: Called now and then with a fraction in [0, 1] and a message.

    Returns:
        The policy with its costs, the lower bound that no policy can beat, and the gap to it.

    Raises:
        InfeasibleBudgetError: If no policy keeps the budget; the least and the most possible value are named.
        ValueError: If an argument or a rule makes no sense.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_mpq import Categorical, profile
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> taylor = profile(net, torch.randn(256, 8).split(32), bits=[2, 4, 8], likelihood=Categorical())
        >>> allocation = allocate(taylor, Budget(average_bits=6))
        >>> sorted(allocation.policy.bits()), allocation.costs["average_bits"] <= 6
        (['0', '2'], True)
    """
    check_settings(objective, solver, time_limit, gap)
    check_integer("seed", seed)
    prepared = Preparation.make(taylor, budget, rules)
    if objective == "additive" and budget.minimises_bytes:
        raise ValueError("A bound on the loss is kept by the quadratic prediction; drop objective='additive'.")
    if budget.minimises_bytes:
        return fewest_bytes(
            prepared, time_limit=time_limit, gap=gap, reference=prepared.reference, solver=solver, seed=seed
        )
    nothing = None if objective == "additive" else _no_pairs(taylor)
    alone = objective == "additive" or nothing is not None
    simple = prepared.solve(
        gap=min(gap, _EXACT) if alone else gap,
        time_limit=time_limit if alone else min(_ADDITIVE_SHARE * time_limit, _ADDITIVE_SECONDS),
        solver=solver,
        seed=seed,
        additive=True,
    )
    if alone:
        return prepared.allocation(simple, simple.selection, "additive", details=nothing or {})
    solution = prepared.solve(
        gap=gap,
        reference=prepared.reference,
        time_limit=max(time_limit - sum(simple.seconds.values()), 0.0),
        solver=solver,
        seed=seed,
        start=simple.selection,
        progress=progress or silent,
    )
    solution = replace(solution, seconds={"additive": sum(simple.seconds.values()), **solution.seconds})
    return prepared.allocation(solution, simple.selection, "quadratic")


def _no_pairs(taylor: TaylorModel) -> dict[str, Any] | None:
    """Return what an allocation reports if pairs of groups are zero within their errors; None if they are not."""
    if taylor.curvature_error is None:
        return None
    size = pairs_in_errors(taylor)
    if size > _NOTHING:
        return None
    reason = (
        f"Pairs of groups are zero within their error ({size:.2g} standard errors, root mean square): the additive "
        "program was solved. Profile more samples to find weaker ones."
    )
    return {"pairs": {"standard_errors": size, "reason": reason}}


def check_settings(objective: str, solver: str, time_limit: float, gap: float) -> None:
    """Refuse settings of `allocate` that make no sense.

    Raises:
        ValueError: If there are any; says which and what is expected.
    """
    check_one_of("objective", objective, OBJECTIVES)
    check_one_of("solver", solver, SOLVERS)
    if not is_number(time_limit) or time_limit < 0:
        raise ValueError(f"time_limit must be a number of seconds of at least 0, got {shown(time_limit)}.")
    if not is_number(gap) or not 0 <= gap < inf:
        raise ValueError(f"gap must be a finite number of at least 0, got {shown(gap)}.")
