"""What all verbs of this package share: a Taylor model with its costs, rules and limits, ready to be solved."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..curvature.taylor_model import TaylorModel
from ..errors import InfeasibleBudgetError
from ..policy import BitPolicy
from .allocation import Allocation, Objective
from .budget import Budget
from .costs import CostRow, cost_rows
from .rules import Rules
from .solver.additive import InfeasibleProblemError
from .solver.distinct_widths import solve_with_widths
from .solver.engine import Solution
from .solver.problem import Array, Indices
from .solver.reduction import ReducedProblem, reduce_problem


@dataclass(frozen=True, eq=False)
class Preparation:
    """A Taylor model with everything that a plan for it must keep.

    Attributes:
        taylor: Predicts the loss.
        budget: What a plan may cost.
        rules: What a plan must look like.
        rows: Every known cost.
        reduced: The problem on plain arrays.
        reference: Magnitude of the loss that gaps may be measured against.
    """

    taylor: TaylorModel
    budget: Budget
    rules: Rules
    rows: Sequence[CostRow]
    reduced: ReducedProblem
    reference: float = field(default=0.0)

    @classmethod
    def make(cls, taylor: TaylorModel, budget: Budget, rules: Rules | None = None) -> Preparation:
        """Check budget and rules against the model, and write the problem on plain arrays.

        Raises:
            InfeasibleBudgetError: If a bound lies below the least possible cost.
            ValueError: If rules contradict each other.
        """
        rules = rules or Rules()
        rows = cost_rows(taylor, budget)
        reduced = reduce_problem(taylor, rows, rules, taylor.gradient.numpy(), taylor.curvature.numpy())
        prepared = cls(taylor, budget, rules, rows, reduced)
        prepared._check_limits()
        return replace(prepared, reference=prepared._reference_loss())

    def with_objective(self, gradient: Array, curvature: Array) -> Preparation:
        """Return the same with another objective."""
        return replace(self, reduced=reduce_problem(self.taylor, self.rows, self.rules, gradient, curvature))

    def solve(self, **options: Any) -> Solution:
        """Solve the problem under budget and rules; see `engine.solve` for the options.

        Raises:
            InfeasibleBudgetError: If budgets and rules cannot all be kept.
        """
        try:
            return solve_with_widths(self.reduced.problem, self.reduced.bits, self.rules.max_distinct_bits, **options)
        except InfeasibleProblemError as error:
            raise InfeasibleBudgetError(self._together_infeasible()) from error

    def allocation(
        self, solution: Solution, additive: Indices | None, objective: Objective, **fields: Any
    ) -> Allocation:
        """Recompute everything from the Taylor model's own numbers and put it into one record."""
        taylor = self.taylor
        additive_policy = None if additive is None else taylor.policy(self.reduced.indices(additive))
        divisor = {row.name: row.divisor for row in self.rows}
        values = self.facts(taylor.policy(self.reduced.indices(solution.selection)), objective)
        values |= {
            "objective": objective,
            "lower_bound": min(solution.bound, values["value"]),
            "reference": self.reference,
            "limits": self.limits,
            "prices": {
                name: float(price) * divisor[name]
                for name, price in zip(self.reduced.bounded, solution.prices, strict=False)
            },
            "status": solution.status,
            "seconds": solution.seconds,
            "nodes": solution.nodes,
            "additive_policy": additive_policy,
            "additive_loss": None if additive_policy is None else taylor.predict(additive_policy).value,
            "preparation": self,
        }
        return Allocation(**{**values, **fields})

    def facts(self, policy: BitPolicy, objective: Objective) -> dict[str, Any]:
        """Return what an allocation says of its policy, whoever found it."""
        prediction = self.taylor.predict(policy)
        chosen = np.array(self.taylor.indices(policy))
        return {
            "policy": policy,
            "prediction": prediction,
            "value": prediction.value - (prediction.between if objective == "additive" else 0.0),
            "costs": {row.name: row.of(chosen) for row in self.rows},
            "prediction_error": prediction.standard_error,
        }

    @property
    def limits(self) -> dict[str, float]:
        """The budget's bounds by the names of their costs."""
        return {row.name: row.limit for row in self.rows if row.limit is not None}

    def uniform(self, bits: int) -> Indices | None:
        """Return the selection that gives every group one width (its first scheme), None if not all offer it."""
        problem = self.reduced.problem
        matching = np.flatnonzero(self.reduced.bits == bits)
        groups, first = np.unique(problem.group[matching], return_index=True)
        return matching[first] if len(groups) == problem.group_count else None

    def _reference_loss(self) -> float:
        """Return a hundredth of the magnitude of the predicted loss at the widest feasible uniform plan.

        It is what a gap is measured against when the optimum itself is near zero or negative; 0 if no
        uniform plan is feasible. A hundredth, so that it never flatters an ordinary gap.
        """
        for bits in sorted(set(self.reduced.bits.tolist()), reverse=True):
            selection = self.uniform(bits)
            if selection is not None and self.reduced.problem.is_feasible(selection):
                return abs(self.reduced.problem.value(selection)) / 100
        return 0.0

    def extremes(self, row: CostRow) -> tuple[float, float]:
        """Return the least and the most that a cost can be under the rules."""
        values = np.array([row.values[list(choice)].sum() for choice in self.reduced.members])
        least = float(self.reduced.problem.least(values).sum())
        most = -float(self.reduced.problem.least(-values).sum())
        return (row.offset + least) / row.divisor, (row.offset + most) / row.divisor

    def _check_limits(self) -> None:
        """Refuse a budget that no plan can keep by itself."""
        problem, by_name = self.reduced.problem, {row.name: row for row in self.rows}
        for name, values, limit in zip(self.reduced.bounded, problem.rows, problem.limits, strict=True):
            row = by_name[name]
            least, most = self.extremes(row)
            if row.limit is not None and row.limit > most:
                warnings.warn(
                    f"The budget {name}={row.limit:.10g} bounds nothing: the most possible value is {most:.10g} "
                    f"{row.unit} (the least is {least:.10g}). Lower it if the model is to become smaller.",
                    UserWarning,
                    stacklevel=4,
                )
            if problem.least(values).sum() > limit:
                raise InfeasibleBudgetError(
                    f"The budget {name}={row.limit:.10g} is below the least possible value, {least:.10g} {row.unit}"
                    f" (the most possible is {most:.10g}). Raise the budget or offer candidates of fewer bits."
                )

    def _together_infeasible(self) -> str:
        """Say that budgets contradict each other or the rules, and what each could be alone."""
        by_name = {row.name: row for row in self.rows}
        parts = []
        for name in self.reduced.bounded:
            least, most = self.extremes(by_name[name])
            parts.append(f"{name}={by_name[name].limit:.10g} (alone possible: {least:.10g} to {most:.10g})")
        rule = self.rules.max_distinct_bits
        also = "" if rule is None else f" with at most {rule} distinct widths"
        return f"No plan keeps these budgets all at once{also}: {'; '.join(parts)}. Raise one of them."
