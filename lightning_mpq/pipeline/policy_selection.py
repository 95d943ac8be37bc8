"""Near-optimal policies are measured, the best is kept, and the loss is expanded again where the prediction erred.

Policies are compared as the Taylor model predicts them: with the codes that were profiled, and repaired. These codes
are fixed before any choice and the same for all policies, so that the choice among a handful of them is all that the
calibration data could be overfitted by, and only a difference beyond its standard error counts; the policy that is kept
is rounded in sequence afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from ..allocation import Allocation, Budget, allocate, alternatives
from ..curvature import TaylorModel
from ..groups.groups import LayerGroups
from ..network.loss_change import Losses
from ..options import SelectionOptions, SolverOptions
from ..policy import BitPolicy
from ..report.records import TrialRow
from ..rounding.independent import round_candidates
from ..tools.distributed import on_rank_zero
from ..tools.process_wide import quiet
from .policy_evaluator import PolicyEvaluator
from .reexpansion import expand_at

_SECONDS_FOR_ALTERNATIVES = 3.0
"""Their certificates matter to nobody."""
_STANDARD_ERRORS = 2.0
"""Of the paired difference, by which another policy must beat the solved one: the best of several on a few hundred
samples is often the luckiest."""
Solve = Callable[[TaylorModel], Allocation]


@dataclass(frozen=True)
class Selection:
    """The policy that was kept.

    Attributes:
        allocation: It, with its record; ``lower_bound`` and status are those of the solved program.
        trials: Every policy that was measured.
    """

    allocation: Allocation
    trials: tuple[TrialRow, ...]


@dataclass(frozen=True)
class PolicySelection:
    """Measures policies on the calibration batches and keeps the best.

    Attributes:
        evaluator: Where policies are measured.
        groups: The model's groups.
        taylor: The Taylor model around the float weights.
        options: How many policies and rounds.
    """

    evaluator: PolicyEvaluator
    groups: LayerGroups
    taylor: TaylorModel
    options: SelectionOptions

    def run(self, allocation: Allocation, others: Mapping[str, BitPolicy], solve: Solve, **settings: Any) -> Selection:
        """Measure the solved policy and others, keep the best, and expand again if the prediction for it was wrong.

        Another policy is kept only if it is better than the solved one by two standard errors of the paired difference.

        Args:
            allocation: The solved policy.
            others: Name to other policies within the budget; those that stand twice are measured once.
            solve: Taylor model to allocation, for the rounds.
            settings: Those of `expand_at` for the rounds.
        """
        policies = {"solved": allocation.policy}
        for name, policy in others.items():
            if policy not in policies.values():
                policies[name] = policy
        trials = [self._trial(0, name, policy, self.taylor.predict(policy).value) for name, policy in policies.items()]
        tried = list(policies.values())
        least = min(range(len(trials)), key=lambda i: trials[i].measured_loss)
        best = least if self._surely_better(tried[least], tried[0]) else 0
        for number in range(1, self.options.rounds + 1):
            base = trials[best]
            if not self._disagrees(base):
                break
            local = self._expanded(tried[best], settings)
            policy = solve(local).policy
            step = local.predict(policy).value - local.predict(tried[best]).value
            tried.append(policy)
            trials.append(self._trial(number, "expanded again", policy, base.measured_loss + step))
            if not self._surely_better(policy, tried[best]):
                break
            best = len(trials) - 1
        rows = tuple(row.kept_if(number == best) for number, row in enumerate(trials))
        kept = allocation if tried[best] == allocation.policy else allocation.with_policy(tried[best])
        return Selection(kept, rows)

    def _trial(self, number: int, name: str, policy: BitPolicy, predicted: float) -> TrialRow:
        return TrialRow(number, name, policy.bits(), predicted, self._losses(policy).mean())

    def _losses(self, policy: BitPolicy) -> Losses:
        """Return the losses under a policy as the Taylor model predicts them: with the codes profiled, and repaired."""
        return self.evaluator.losses(policy, "independent", self.evaluator.stages[-1:])[0]

    def _surely_better(self, policy: BitPolicy, than: BitPolicy) -> bool:
        """Tell whether a policy is better than another by more than the chance of these samples explains."""
        gain, error = self._losses(policy).minus(self._losses(than))
        return gain < -_STANDARD_ERRORS * error

    def _disagrees(self, trial: TrialRow) -> bool:
        """Tell whether the prediction of a policy is off by more than the trusted factor."""
        low, high = sorted((trial.predicted_loss, trial.measured_loss))
        return (high / low if low > 0 else inf) > self.options.trust and high > 0

    def _expanded(self, policy: BitPolicy, settings: Mapping[str, Any]) -> TaylorModel:
        """Return the Taylor model around a policy, its noise shrunk."""
        calibration, quantizer = self.evaluator.calibration, self.evaluator.quantizer
        rounded = quantizer.rounded
        if rounded is None:
            rounded = round_candidates(calibration.model, (), self.groups, self.taylor.candidates, best_grid=False)
        loss, codes = self.taylor.loss, rounded.of_policy(policy)
        return expand_at(calibration, self.groups, rounded, codes, loss=loss, repair=quantizer.repair, **settings)


def other_policies(
    taylor: TaylorModel,
    unshrunk: TaylorModel,
    budget: Budget,
    allocation: Allocation,
    count: int,
    solver: SolverOptions,
) -> dict[str, BitPolicy]:
    """Return policies worth measuring beside the solved one: additive, unshrunk, and the next best that differ.

    There are none if the budget asks for the fewest bytes, or the solver for the additive policy.

    Args:
        taylor: The Taylor model.
        unshrunk: The same before its noise was shrunk.
        budget: Its bounds.
        allocation: The solved policy.
        count: How many near-optimal policies, the solved one included.
        solver: How that was solved.
    """
    if count < 2 or budget.minimises_bytes or solver.objective == "additive":
        return {}
    settings: dict[str, Any] = {
        "rules": solver.rules,
        "solver": solver.solver,
        "time_limit": min(solver.time_limit, _SECONDS_FOR_ALTERNATIVES),
        "gap": solver.gap,
        "seed": solver.seed,
    }

    def solve() -> dict[str, BitPolicy]:
        found = {} if allocation.additive_policy is None else {"additive": allocation.additive_policy}
        if not torch.equal(taylor.curvature, unshrunk.curvature):
            found["unshrunk"] = allocate(unshrunk, budget, **settings).policy
        near = alternatives(taylor, budget, count - 1, apart_from=[allocation.policy], **settings)
        return found | {f"alternative {number}": other.policy for number, other in enumerate(near, start=1)}

    with quiet():  # the first policy has said already what it thinks of the budget
        return on_rank_zero(solve)
