"""What all verbs of this package share: a Taylor model with its costs, rules and limits, ready to be solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..curvature.taylor_model import TaylorModel
from ..errors import InfeasibleBudgetError
from ..policy import BitPolicy
from ..tools.progress import Progress
from .allocation import Allocation, Objective
from .budget import Budget
from .costs import CostRow, cost_rows
from .feasibility import refuse_unreachable, together_infeasible
from .rules import Rules
from .solver.additive import InfeasibleProblemError
from .solver.distinct_widths import solve_with_widths
from .solver.engine import Solution
from .solver.problem import Indices, Problem
from .solver.reduction import Reduction
from .stability import Stability, stability_of


@dataclass(frozen=True, eq=False)
class Preparation:
    """A Taylor model with everything that a policy for it must keep.

    Attributes:
        taylor: Predicts the loss.
        budget: What a policy may cost.
        rules: What a policy must look like.
        rows: Every known cost.
        reduction: What may be chosen under the rules.
        problem: The problem on plain arrays.
        reference: Magnitude of the loss that gaps may be measured against.
    """

    taylor: TaylorModel
    budget: Budget
    rules: Rules
    rows: Sequence[CostRow]
    reduction: Reduction
    problem: Problem
    reference: float = field(default=0.0)

    @classmethod
    def make(cls, taylor: TaylorModel, budget: Budget, rules: Rules | None = None) -> Preparation:
        """Check budget and rules against the model, and write the problem on plain arrays.

        Raises:
            InfeasibleBudgetError: If a bound lies below the least possible cost.
            ValueError: If rules contradict each other.
        """
        rules = Rules() if rules is None else rules
        rows = cost_rows(taylor.choices, budget)
        reduction = Reduction.of(taylor.choices, rows, rules)
        refuse_unreachable(rows, reduction)
        problem = reduction.problem(taylor.gradient.numpy(), taylor.curvature.numpy())
        prepared = cls(taylor, budget, rules, rows, reduction, problem)
        return replace(prepared, reference=prepared._reference_loss())

    def solve(self, **options: Any) -> Solution:
        """Solve the problem under budget and rules; see `engine.solve` for the options.

        Raises:
            InfeasibleBudgetError: If budgets and rules cannot all be kept.
        """
        try:
            return solve_with_widths(self.problem, self.reduction.bits, self.rules.max_distinct_bits, **options)
        except InfeasibleProblemError as error:
            raise InfeasibleBudgetError(together_infeasible(self.rows, self.reduction, self.rules)) from error

    def allocation(
        self, solution: Solution, additive: Indices | None, objective: Objective, **fields: Any
    ) -> Allocation:
        """Recompute everything from the Taylor model's own numbers and put it into one record."""
        taylor = self.taylor
        additive_policy = None if additive is None else taylor.policy(self.reduction.indices(additive))
        divisor = {row.name: row.divisor for row in self.rows}
        values = self.facts(taylor.policy(self.reduction.indices(solution.selection)), objective)
        values |= {
            "objective": objective,
            "lower_bound": min(solution.bound, values["value"]),
            "reference": self.reference,
            "limits": self.limits,
            "prices": {
                name: float(price) * divisor[name]
                for name, price in zip(self.reduction.bounded, solution.prices, strict=False)
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

    def stability(self, policy: BitPolicy, additive: bool, resamples: int, seed: int, progress: Progress) -> Stability:
        """Return how much a policy depends on the samples that were profiled; see `Allocation.stability`."""
        selection = self.reduction.selection(self.taylor.indices(policy))
        if selection is None:
            raise ValueError("The allocation's policy breaks the rules of its problem; use one as it was made.")
        if self.budget.minimises_bytes:
            raise ValueError(
                "Stability asks for the least loss within a budget, and this policy has the fewest bytes for a loss; "
                "allocate with bytes= as many as it takes."
            )
        return stability_of(
            self.taylor,
            self.reduction,
            self.problem,
            selection,
            additive=additive,
            widths=self.rules.max_distinct_bits,
            reference=self.reference,
            resamples=resamples,
            seed=seed,
            progress=progress,
        )

    @property
    def unit(self) -> str:
        """What a predicted loss is counted in."""
        return self.taylor.unit

    @property
    def limits(self) -> dict[str, float]:
        """The budget's bounds by the names of their costs."""
        return {row.name: row.limit for row in self.rows if row.limit is not None}

    def uniform(self, bits: int) -> Indices | None:
        """Return the selection that gives every group one width (its first scheme), None if not all offer it."""
        problem = self.problem
        matching = np.flatnonzero(self.reduction.bits == bits)
        groups, first = np.unique(problem.group[matching], return_index=True)
        return matching[first] if len(groups) == problem.group_count else None

    def _reference_loss(self) -> float:
        """Return a hundredth of the magnitude of the predicted loss at the widest feasible uniform policy.

        It is what a gap is measured against when the optimum itself is near zero or negative; 0 if no
        uniform policy is feasible. A hundredth, so that it never flatters an ordinary gap.
        """
        for bits in sorted(set(self.reduction.bits.tolist()), reverse=True):
            selection = self.uniform(bits)
            if selection is not None and self.problem.is_feasible(selection):
                return abs(self.problem.value(selection)) / 100
        return 0.0
