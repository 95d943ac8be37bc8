"""Simple policies are measured beside the solved one, and the loss is expanded again where the prediction erred.

They are judged on calibration samples that neither rounding nor the profile has seen. Policies are compared as the
Taylor model predicts them, with the codes that were profiled, and repaired; only a difference beyond its standard error
counts. What is kept then is compared with the simple policies as they would be packed: the additive one, and the widest
one of equal widths that the budget allows. If one of these is better beyond doubt, it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from ..allocation import Allocation
from ..allocation.preparation import Preparation
from ..curvature import TaylorModel
from ..groups.groups import LayerGroups
from ..options import SelectionOptions, SolverOptions
from ..policy import BitPolicy
from ..report.rows import TrialRow
from ..rounding.independent import round_candidates
from ..tools.progress import Progress, silent
from .policy_evaluator import Measured, PolicyEvaluator
from .reexpansion import expand_at

_STANDARD_ERRORS = 2.0
"""Of the paired difference, by which another policy must beat the solved one: the best of several on a few hundred
samples is often the luckiest."""
_PLAINLY = 2.0
"""Times the loss of another, a policy is worse whatever is done about its rounding."""
SIMPLE = ("additive", "uniform")
"""Policies that take no pairs, or no program, and that the one which is kept must not be worse than."""
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
    """Measures policies on what is held out and keeps the best.

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

    def run(
        self,
        allocation: Allocation,
        others: Mapping[str, BitPolicy],
        solve: Solve,
        progress: Progress = silent,
        **settings: Any,
    ) -> Selection:
        """Measure the solved policy and others, keep the best, and expand again if the prediction for it was wrong.

        Another policy is kept only if it is better by two standard errors of the paired difference.

        Args:
            allocation: The solved policy.
            others: Name to other policies within the budget; those that stand twice are measured once.
            solve: Taylor model to allocation, for the rounds.
            progress: Called with how far that is.
            settings: Those of `expand_at` for the rounds.
        """
        policies = {"solved": allocation.policy}
        for name, policy in others.items():
            if policy not in policies.values():
                policies[name] = policy
        steps, trials = len(policies) + self.options.rounds, list[TrialRow]()
        for name, policy in policies.items():
            progress(len(trials) / steps, f"measure the {name} policy")
            trials.append(self._trial(0, name, policy, self.taylor.predict(policy).value))
        tried = list(policies.values())
        best = self._best(tried)
        for number in range(1, self.options.rounds + 1):
            base = trials[best]
            if tried[best].inputs() or not self._disagrees(base):
                break
            progress((len(policies) + number - 1) / steps, "expand the loss again")
            local = self._expanded(tried[best], settings)
            policy = solve(local).policy
            step = local.predict(policy).value - local.predict(tried[best]).value
            tried.append(policy)
            trials.append(self._trial(number, "expanded again", policy, base.measured_loss + step))
            if not self._surely_better(policy, tried[best]):
                break
            best = len(trials) - 1
        for number, trial in enumerate(trials):
            if trial.policy in SIMPLE and self._is_better_as_packed(tried[number], tried[best]):
                best = number
        kept = allocation if tried[best] == allocation.policy else allocation.with_policy(tried[best])
        return Selection(kept, tuple(self._judged(trials, tried, best)))

    def _trial(self, number: int, name: str, policy: BitPolicy, predicted: float) -> TrialRow:
        found = self.evaluator.as_profiled(policy)
        return TrialRow(number, name, policy.bits(), predicted, found.mean(), fitted_loss=found.fitted)

    def _judged(self, trials: list[TrialRow], tried: list[BitPolicy], best: int) -> Iterator[TrialRow]:
        """Yield the trials with how far they are from the one that is kept."""
        kept = self.evaluator.as_profiled(tried[best]).losses
        for number, (trial, policy) in enumerate(zip(trials, tried, strict=True)):
            above, error = self.evaluator.as_profiled(policy).losses.above(kept)
            yield replace(trial, kept=number == best, above_kept=above, above_kept_error=error)

    def _best(self, tried: list[BitPolicy]) -> int:
        """Return the first policy, or one that is surely better; none is surely better than that one."""
        best = 0
        while better := [i for i, policy in enumerate(tried) if self._surely_better(policy, tried[best])]:
            best = min(better, key=lambda i: self.evaluator.as_profiled(tried[i]).mean())
        return best

    def _surely_better(self, policy: BitPolicy, than: BitPolicy) -> bool:
        """Tell whether a policy is better than another by more than the chance of these samples explains."""
        return _beyond_chance(self.evaluator.as_profiled(policy), self.evaluator.as_profiled(than))

    def _is_better_as_packed(self, simple: BitPolicy, than: BitPolicy) -> bool:
        """Tell the same of both as they are packed; that takes some time, and is not done where it is plain already."""
        if simple == than:
            return False
        one, two = self.evaluator.as_profiled(simple), self.evaluator.as_profiled(than)
        if one.mean() > _PLAINLY * two.mean() and _beyond_chance(two, one):
            return False
        return _beyond_chance(self.evaluator.as_packed(simple), self.evaluator.as_packed(than))

    def _disagrees(self, trial: TrialRow) -> bool:
        """Tell whether the prediction of a policy, for unseen samples, is off by more than the trusted factor."""
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


def other_policies(allocation: Allocation, count: int, solver: SolverOptions) -> dict[str, BitPolicy]:
    """Return the simple policies that are measured beside the solved one: the additive one, then the uniform one.

    There are none if the budget asks for the fewest bytes; if the solver was asked for the additive policy, there is
    the uniform one alone.

    Args:
        allocation: The solved policy.
        count: How many policies are measured at most, the solved one included.
        solver: How that was solved.
    """
    if allocation.minimised == "bytes":
        return {}
    found: dict[str, BitPolicy] = {}
    if solver.objective != "additive" and allocation.additive_policy is not None:
        found["additive"] = allocation.additive_policy
    if (uniform := widest_uniform(allocation)) is not None:
        found["uniform"] = uniform
    return dict(list(found.items())[: count - 1])


def widest_uniform(allocation: Allocation) -> BitPolicy | None:
    """Return the policy of one width everywhere, the largest that budget and rules allow; None if none does."""
    prepared = allocation.preparation
    assert isinstance(prepared, Preparation)
    for bits in sorted(set(prepared.reduction.bits.tolist()), reverse=True):
        selection = prepared.uniform(bits)
        if selection is not None and prepared.problem.is_feasible(selection):
            return prepared.taylor.policy(prepared.reduction.indices(selection))
    return None


def _beyond_chance(better: Measured, than: Measured) -> bool:
    gain, error = better.losses.minus(than.losses)
    return gain < -_STANDARD_ERRORS * error
