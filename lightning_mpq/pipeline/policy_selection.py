"""The loop closed: near-optimal plans are measured, the best is kept, and the loss is expanded again where it erred.

Plans are compared as the Taylor model predicts them: with the codes that were profiled, and repaired. These codes are
fixed before any choice and the same for all plans, so that the choice among a handful of plans is all that the
calibration data could be overfitted by, and only a difference beyond its standard error counts; the plan that is kept
is rounded in sequence afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import torch

from ..allocation import Allocation, Budget, allocate, alternatives
from ..curvature import TaylorModel
from ..curvature.shrinkage import shrink
from ..groups.groups import LayerGroups
from ..options import LoopOptions, SolverOptions
from ..policy import BitPolicy
from ..report.records import TrialRow
from ..rounding.independent import round_candidates
from ..tools.distributed import on_rank_zero
from .loss_change import Losses
from .policy_evaluator import Workbench
from .reexpansion import expand_at

_SECONDS_FOR_ALTERNATIVES = 3.0
"""Their certificates matter to nobody."""
_STANDARD_ERRORS = 2.0
"""Of the paired difference, by which another plan must beat the solved one: the best of several on a few hundred
samples is often the luckiest."""
Solve = Callable[[TaylorModel], Allocation]


@dataclass(frozen=True)
class Found:
    """What came of the loop.

    Attributes:
        allocation: The kept plan; ``lower_bound`` and status are those of the solved program.
        trials: Every plan that was measured.
    """

    allocation: Allocation
    trials: tuple[TrialRow, ...]


class ClosedLoop:
    """Measures plans on the calibration batches and keeps the best."""

    def __init__(self, bench: Workbench, groups: LayerGroups, taylor: TaylorModel, options: LoopOptions) -> None:
        """Keep what is needed.

        Args:
            bench: Where plans are measured.
            groups: The model's groups.
            taylor: The Taylor model around the float weights.
            options: How many plans and rounds.
        """
        self._bench, self._groups, self._taylor, self._options = bench, groups, taylor, options

    def run(self, allocation: Allocation, others: Mapping[str, BitPolicy], solve: Solve, **settings: Any) -> Found:
        """Measure the solved plan and others, keep the best, and expand again if the prediction for it was wrong.

        Another plan is kept only if it is better than the solved one by two standard errors of the paired difference.

        Args:
            allocation: The solved plan.
            others: Name to other plans within the budget; those that stand twice are measured once.
            solve: Taylor model to plan, for the rounds.
            settings: Those of `profile` for the rounds: curvature, statistics, draws, chunk_size, seed.
        """
        plans = {"solved": allocation.policy}
        for name, policy in others.items():
            if policy not in plans.values():
                plans[name] = policy
        trials = [self._trial(0, name, policy, self._taylor.predict(policy).value) for name, policy in plans.items()]
        policies = list(plans.values())
        least = min(range(len(trials)), key=lambda i: trials[i].measured_loss)
        best = least if self._surely_better(policies[least], policies[0]) else 0
        for number in range(1, self._options.rounds + 1):
            base = trials[best]
            if not self._disagrees(base):
                break
            local = self._expanded(policies[best], settings)
            policy = solve(local).policy
            step = local.predict(policy).value - local.predict(policies[best]).value
            policies.append(policy)
            trials.append(self._trial(number, "solved again", policy, base.measured_loss + step))
            if not self._surely_better(policy, policies[best]):
                break
            best = len(trials) - 1
        rows = tuple(row.kept_if(number == best) for number, row in enumerate(trials))
        kept = allocation if policies[best] == allocation.policy else allocation.with_policy(policies[best])
        return Found(kept, rows)

    def _trial(self, number: int, name: str, policy: BitPolicy, predicted: float) -> TrialRow:
        return TrialRow(number, name, policy.bits(), predicted, self._losses(policy).mean())

    def _losses(self, policy: BitPolicy) -> Losses:
        """Return the losses under a plan as the Taylor model predicts them: with the codes profiled, and repaired."""
        return self._bench.losses(policy, "by float inputs", self._bench.stages[-1:])[0]

    def _surely_better(self, policy: BitPolicy, than: BitPolicy) -> bool:
        """Tell whether a plan is better than another by more than the chance of these samples explains."""
        gain, error = self._losses(policy).minus(self._losses(than))
        return gain < -_STANDARD_ERRORS * error

    def _disagrees(self, trial: TrialRow) -> bool:
        """Tell whether the prediction of a plan is off by more than the trusted factor."""
        low, high = sorted((trial.predicted_loss, trial.measured_loss))
        return (high / low if low > 0 else inf) > self._options.trust and high > 0

    def _expanded(self, policy: BitPolicy, settings: Mapping[str, Any]) -> TaylorModel:
        """Return the Taylor model around a plan, its noise shrunk."""
        bench = self._bench
        rounded = bench.rounded
        if rounded is None:
            rounded = round_candidates(bench.model, (), self._groups, self._taylor.candidates, best_grid=False)
        local = expand_at(
            bench.model,
            bench.batches,
            self._groups,
            rounded,
            rounded.of_policy(policy),
            loss=self._taylor.loss,
            likelihood=bench.change.likelihood,
            repair=bench.repair,
            forward_fn=bench.forward_fn,
            loss_fn=bench.loss_fn,
            **settings,
        )
        return shrink(local)


def other_plans(
    taylor: TaylorModel,
    unshrunk: TaylorModel,
    budget: Budget,
    allocation: Allocation,
    plans: int,
    solver: SolverOptions,
) -> dict[str, BitPolicy]:
    """Return plans worth measuring beside the solved one: additive, without shrinking, and the next best that differ.

    There are none if the budget asks for the fewest bytes, or the solver for the additive plan.

    Args:
        taylor: The Taylor model.
        unshrunk: The same before its noise was shrunk.
        budget: Its bounds.
        allocation: The solved plan.
        plans: How many near-optimal plans, the solved one included.
        solver: How that was solved.
    """
    if plans < 2 or budget.minimises_bytes or solver.objective == "additive":
        return {}
    settings: dict[str, Any] = {
        "rules": solver.rules,
        "solver": solver.solver,
        "time_limit": min(solver.time_limit, _SECONDS_FOR_ALTERNATIVES),
        "gap": solver.gap,
        "seed": solver.seed,
    }

    def solve() -> dict[str, BitPolicy]:
        found = {} if allocation.additive_policy is None else {"additive plan": allocation.additive_policy}
        if not torch.equal(taylor.curvature, unshrunk.curvature):
            found["without shrinking"] = allocate(unshrunk, budget, **settings).policy
        near = alternatives(taylor, budget, plans - 1, apart_from=[allocation.policy], **settings)
        return found | {f"alternative {number}": plan.policy for number, plan in enumerate(near, start=1)}

    with warnings.catch_warnings():  # the first plan has said already what it thinks of the budget
        warnings.simplefilter("ignore")
        return on_rank_zero(solve)
