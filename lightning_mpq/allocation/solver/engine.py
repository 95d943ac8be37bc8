"""The steps of a solve on plain arrays: incumbent, bound and screening, branch and bound; or an additive program."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ...tools.progress import Progress
from ..status import SolveStatus
from .additive import (
    InfeasibleProblemError,
    feasible_by_milp,
    solve_additive_problem,
)
from .branch_and_bound import BranchAndBound
from .clock import Clock
from .lagrangian import gilmore_lawler_bound, lagrangian, row_prices
from .local_search import (
    LocalSearch,
    break_ties,
    first_selection,
    iterated_local_search,
)
from .milp import Solver
from .problem import Array, Indices, Mask, Problem

_OPTIMAL = 2e-6
"""Relative gap at which a policy counts as the best: integer programming solvers are no more exact."""

_SEARCHING = 0.3
"""Share of the time that the local search may take before a bound is proved."""


def silent(fraction: float, message: str) -> None:
    """Report no progress."""


@dataclass(frozen=True, eq=False)
class Solution:
    """A selection with its certificate.

    Attributes:
        selection: Chosen candidate of each group, shape [L].
        value: Its objective, from the problem's own numbers.
        bound: Proved lower bound, never above ``value``.
        status: How the solve ended.
        seconds: Wall time of each step.
        nodes: Nodes of the branch and bound.
        prices: Price of each budget in the relaxation, in loss per unit, shape [m].
    """

    selection: Indices
    value: float
    bound: float
    status: SolveStatus
    seconds: dict[str, float] = field(default_factory=dict)
    nodes: int = 0
    prices: Array = field(default_factory=lambda: np.zeros(0))


def solve(
    problem: Problem,
    *,
    gap: float,
    reference: float = 0.0,
    time_limit: float = np.inf,
    solver: Solver = "highs",
    seed: int = 0,
    start: Indices | None = None,
    additive: bool = False,
    bound: float = -np.inf,
    known: float = np.inf,
    target: float = -np.inf,
    progress: Progress = silent,
    timer: Callable[[], float] = time.monotonic,
) -> Solution:
    """Minimise the problem's objective and prove how good the result is.

    Args:
        problem: What is solved.
        gap: Relative gap that is good enough, of ``max(|value|, reference)``.
        reference: Magnitude of the objective that the gap may be measured against, since the optimum may
            be near zero or below.
        time_limit: Seconds.
        solver: Which python-mip backend additive programs are given to.
        seed: Decides every random choice.
        start: A feasible selection that is known already.
        additive: Leave the interactions between groups out of the objective.
        bound: A lower bound that is known already.
        known: Value of a policy outside of this problem: only better ones are looked for.
        target: A policy of at most this value, or the proof that there is none, ends the search.
        progress: Called with a fraction in [0, 1] and a message.
        timer: What the time limit counts.

    Raises:
        InfeasibleProblemError: If no selection keeps every budget.
    """
    clock = Clock(time_limit, timer)
    allowed = problem.drop_unaffordable(np.ones(len(problem.group), dtype=bool))
    if allowed is None:
        raise InfeasibleProblemError("A budget lies below the least that the candidates can cost.")
    progress(0.0, "finding a policy")
    prices = row_prices(problem, allowed, lagrangian(problem, problem.additive_cost, allowed)[1])
    if additive or problem.is_additive:
        cost = problem.additive_cost
        unit = _power_of_two(cost)
        selection, proved = solve_additive_problem(
            problem, cost / unit, allowed, gap=gap, reference=reference / unit, clock=clock, solver=solver
        )
        proved *= unit
        clock.note("integer program")
        tolerance = 1e-12 * max(float(np.abs(cost[selection]).sum()), 1e-300)
        selection = break_ties(problem.without_pairs, selection, allowed, tolerance, clock.out_of_time)
        clock.note("ties")
        value, nodes = float(cost[selection].sum()), 0
    else:
        search = _QuadraticSearch(problem, allowed, gap, reference, clock, solver, seed, progress, known, target)
        selection, proved, nodes = search.run(start, bound)
        prices = prices if search.prices is None else search.prices
        value = problem.value(selection)
    bound = min(max(proved, bound), value)
    scale = max(abs(value), reference, 1e-300)
    if value - bound <= _OPTIMAL * scale:
        status = SolveStatus.OPTIMAL
    elif min(value, known) - bound <= gap * scale * (1 + 1e-9):
        status = SolveStatus.WITHIN_GAP
    else:
        status = SolveStatus.NO_TIME if time_limit <= 0 else SolveStatus.TIME_LIMIT
    progress(1.0, status.advice)
    return Solution(selection, value, bound, status, clock.seconds, nodes, prices)


def _power_of_two(*values: Array) -> float:
    """Return a power of two near the largest magnitude: dividing by it is exact and makes tolerances mean something."""
    largest = max(float(np.abs(value).max()) for value in values)
    return float(2.0 ** np.floor(np.log2(largest))) if largest > 0 else 1.0


class _QuadraticSearch:
    """The steps for a quadratic objective, in order; each is skipped once the gap is closed or time is up."""

    def __init__(
        self,
        problem: Problem,
        allowed: Mask,
        gap: float,
        reference: float,
        clock: Clock,
        solver: Solver,
        seed: int,
        progress: Progress,
        known: float,
        target: float,
    ) -> None:
        self.problem, self.allowed = problem, allowed
        self.gap, self.reference = gap, reference
        self.clock, self.solver, self.progress = clock, solver, progress
        self.random = np.random.default_rng(seed)
        self.known, self.target = known, target
        self.prices: Array | None = None

    def run(self, start: Indices | None, bound: float) -> tuple[Indices, float, int]:
        """Return the best selection, the proved bound and the number of nodes."""
        problem, clock = self.problem, self.clock
        selection = self._incumbent(start)
        tree = BranchAndBound(
            problem,
            self.allowed,
            selection,
            gap=self.gap,
            reference=self.reference,
            random=self.random,
            clock=clock,
            bound=bound,
            known=self.known,
            target=self.target,
        )
        self.progress(0.2, "proving a bound")
        tree.run(max_nodes=1)
        clock.note("bound")
        while not (tree.is_settled() or tree.exhausted or clock.out_of_time()):
            tree.run(max_nodes=1)
            self.progress(0.9, f"branch and bound, {tree.nodes} nodes")
        clock.note("branch and bound")
        self.prices = tree.prices
        bound = tree.bound
        if not np.isfinite(bound):
            bound = gilmore_lawler_bound(problem, self.allowed)
            clock.note("crude bound")
        tolerance = 1e-11 * max(abs(tree.value), self.reference)
        selection = break_ties(problem, tree.selection, self.allowed, tolerance, clock.out_of_time)
        clock.note("ties")
        return selection, bound, tree.nodes

    def _incumbent(self, start: Indices | None) -> Indices:
        """Return a good feasible selection."""
        search = LocalSearch(self.problem, self.allowed, self.clock.part(_SEARCHING))
        if start is None or not self.problem.is_feasible(start):
            start = first_selection(self.problem, self.allowed, search)
        if start is None:
            start = feasible_by_milp(self.problem, self.allowed, self.clock, self.solver)
        selection, _ = iterated_local_search(search, start, self.random, kicks=20 + self.problem.group_count // 4)
        self.clock.note("local search")
        return selection
