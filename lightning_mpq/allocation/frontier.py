"""The Pareto frontier: the best policy at each of many budgets, each with its certificate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..curvature.taylor_model import TaylorModel
from ..errors import InfeasibleBudgetError
from ..tools.checks import check_list, check_positive
from ..tools.files import write_text_atomically
from ..tools.kinds import checked_kinds
from ..tools.progress import Progress
from .allocation import Allocation
from .budget import Budget
from .plotting import figure_and_axes
from .preparation import Preparation
from .rules import Rules
from .solver.engine import Solution, silent
from .solver.milp import Solver


@dataclass(frozen=True)
class Frontier:
    """The best policies of a sweep of budgets, none dominated by another.

    Attributes:
        cost: Name of the cost that was swept.
        points: The policies, by ascending cost.
        dominated: Policies that cost no less and lose no less than some point; they are left out.
        seconds: Wall time of the whole sweep.
    """

    cost: str
    points: tuple[Allocation, ...]
    dominated: tuple[Allocation, ...] = ()
    seconds: float = 0.0

    @property
    def _in_units(self) -> str:
        unit = self.points[0].unit if self.points else ""
        return f", {unit}" if unit else ""

    def at(self, limit: float) -> Allocation:
        """Return the best policy of the sweep that costs at most so much; nothing is solved.

        Args:
            limit: Bound on the cost that was swept, such as 2.8 average bits.

        Raises:
            InfeasibleBudgetError: If every point costs more; names the cheapest.

        Example::

            now, then = frontier.at(3.0), frontier.at(2.8)
            mpq.changes(now.policy, then.policy)      # which layers would change at 2.8 bits
        """
        within = [point for point in self.points if point.costs[self.cost] <= limit]
        if not within:
            least = min((point.costs[self.cost] for point in self.points), default=float("nan"))
            raise InfeasibleBudgetError(
                f"No point of the sweep costs at most {self.cost}={limit:.10g}: the cheapest one costs {least:.10g}. "
                "Sweep smaller budgets too."
            )
        return within[-1]

    def table(self) -> Table:
        """Return a rich table with one row a point."""
        table = Table(title="Pareto frontier")
        loss = f"predicted loss{self._in_units}"
        for column in (self.cost, "bytes", loss, "additive policy", "proved gap", "status"):
            table.add_column(column, justify="right")
        for point in self.points:
            excess = point.additive_excess
            table.add_row(
                f"{point.costs[self.cost]:.4g}",
                f"{point.costs['bytes']:,.0f}",
                f"{point.predicted_loss:.4g}",
                "" if excess is None else f"{excess:+.1%}",
                f"{point.gap:.3%}",
                point.status.name.lower(),
            )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "cost": self.cost,
            "seconds": self.seconds,
            "points": [point.to_dict() for point in self.points],
            "dominated": [point.to_dict() for point in self.dominated],
        }

    def to_json(self) -> str:
        """Return the frontier as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write the frontier as a JSON file, whole or not at all, and return where."""
        return write_text_atomically(Path(path), self.to_json() + "\n")

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw predicted loss over cost, the proved lower bound, and what additive policies would lose.

        Args:
            ax: Axes to draw on; a new figure by default.

        Returns:
            Figure and axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
        """
        fig, ax = figure_and_axes(ax)
        cost = [point.costs[self.cost] for point in self.points]
        ax.plot(cost, [point.predicted_loss for point in self.points], "o-", label="best policy")
        ax.plot(cost, [point.lower_bound for point in self.points], "_", color="gray", label="proved lower bound")
        additive = [(c, p.additive_loss) for c, p in zip(cost, self.points, strict=True) if p.additive_loss is not None]
        if additive:
            ax.plot(*zip(*additive, strict=True), "x:", label="additive policy")
        if all(point.lower_bound > 0 for point in self.points):
            ax.set_yscale("log")
        ax.set_xlabel(self.cost.replace("_", " "))
        ax.set_ylabel(f"predicted loss change{self._in_units}")
        ax.grid(True, alpha=0.3)
        ax.legend()
        return fig, ax


@checked_kinds
def frontier(
    taylor: TaylorModel,
    *,
    average_bits: Sequence[float] | None = None,
    bytes: Sequence[float] | None = None,
    budget: Budget | None = None,
    rules: Rules | None = None,
    solver: Solver = "highs",
    time_limit: float = 10.0,
    gap: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Frontier:
    """Allocate at many budgets, each proved, sharing bounds and policies between them.

    Budgets are solved from the largest to the smallest. What a larger budget proves holds for every smaller
    one: its bound, and its policy while that still fits, which is then as good as proved without any work.

    Args:
        taylor: Predicts the loss of every policy.
        average_bits: Budgets to sweep; give these or ``bytes``.
        bytes: Budgets to sweep.
        budget: Further bounds, the same at every point.
        rules: What every policy must look like.
        solver: python-mip backend.
        time_limit: Seconds for each point.
        gap: Relative gap that ends each search.
        seed: Decides every random choice.
        progress: Called with a fraction in [0, 1] and a message.

    Returns:
        One allocation for each budget.

    Raises:
        ValueError: If not exactly one of average_bits and bytes is given, or it is empty.
        InfeasibleBudgetError: If the smallest budget cannot be met.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_mpq import Categorical, profile
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> taylor = profile(net, torch.randn(256, 8).split(32), bits=[2, 4, 8], likelihood=Categorical())
        >>> swept = frontier(taylor, average_bits=[5, 6, 7])
        >>> all(point.costs["average_bits"] <= 7 for point in swept.points)
        True
        >>> swept.save("frontier.json")  # doctest: +SKIP
    """
    if (average_bits is None) == (bytes is None):
        raise ValueError("Give the budgets to sweep as average_bits=[...] or as bytes=[...], one of the two.")
    cost = "bytes" if average_bits is None else "average_bits"
    values = bytes if average_bits is None else average_bits
    assert values is not None
    check_list(cost, values, [3.0, 4.0])
    values = tuple(values)
    for value in values:
        check_positive(cost, value)
    swept = sorted({float(value) for value in values}, reverse=True)
    if not swept:
        raise ValueError(f"The list of budgets in {cost} is empty; give at least one.")
    if budget is not None and (getattr(budget, cost) is not None or budget.minimises_bytes):
        raise ValueError(f"The further budget must not bound {cost}, which is swept, nor the loss.")
    report = progress or silent
    prepared = [Preparation.make(taylor, _with(budget, cost, value), rules) for value in swept]
    options = {"gap": gap, "solver": solver, "seed": seed}
    found: list[Allocation] = []
    earlier: list[tuple[Preparation, Solution]] = []
    elapsed = 0.0
    for number, point in enumerate(prepared):
        report(number / len(prepared), f"{cost} {swept[number]:g}")
        simple = point.solve(time_limit=time_limit, additive=True, **options)
        bound, start = _inherited(point, earlier)
        solution = point.solve(
            time_limit=time_limit,
            reference=point.reference,
            bound=bound,
            start=simple.selection if start is None else start,
            **options,
        )
        earlier.append((point, solution))
        found.append(point.allocation(solution, simple.selection, "quadratic"))
        elapsed += sum(simple.seconds.values()) + sum(solution.seconds.values())
    report(1.0, "done")
    points, dominated = _undominated(found, cost)
    return Frontier(cost, points, dominated, elapsed)


def _with(budget: Budget | None, cost: str, value: float) -> Budget:
    """Return a budget with one more bound."""
    changes: dict[str, Any] = {cost: value}
    return Budget(**changes) if budget is None else replace(budget, **changes)


def _inherited(point: Preparation, earlier: Sequence[tuple[Preparation, Solution]]) -> tuple[float, Any]:
    """Return the best bound that larger budgets prove for this one, and their cheapest policy that fits it."""
    bound, start, best = -np.inf, None, np.inf
    problem = point.problem
    for _, solution in earlier:
        bound = max(bound, solution.bound)
        if solution.value < best and problem.is_feasible(solution.selection):
            start, best = solution.selection, solution.value
    return bound, start


def _undominated(found: Sequence[Allocation], cost: str) -> tuple[tuple[Allocation, ...], tuple[Allocation, ...]]:
    """Split policies into those that no other one beats or equals in both cost and loss, and the rest."""
    ordered = sorted(found, key=lambda point: (point.costs[cost], point.predicted_loss))
    points: list[Allocation] = []
    dominated: list[Allocation] = []
    for point in ordered:
        (dominated if points and point.predicted_loss >= points[-1].predicted_loss else points).append(point)
    return tuple(points), tuple(dominated)
