"""The whole job on a trained model: profile, allocate, quantize, repair, and the verdict on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..allocation import Allocation
from ..curvature import TaylorModel
from ..groups.groups import LayerGroups
from ..network.batches import batch_weight
from ..report import Report
from ..tools.distributed import gather, mean_over_ranks
from .comparison import Verdict
from .planning import Plan, Planner


@dataclass(frozen=True)
class Outcome:
    """What a run of the pipeline found and did.

    Attributes:
        groups: The groups, and what stayed in float.
        taylor: The Taylor model; other budgets need no new profile.
        allocation: The plan with its certificate.
        report: The verdict, or None if it was not asked for.
    """

    groups: LayerGroups
    taylor: TaylorModel
    allocation: Allocation
    report: Report | None


@dataclass
class Pipeline(Planner):
    """Decides the bits of a trained model, and puts them into effect; see `Planner` for what it needs to know."""

    def run(
        self, model: nn.Module, batches: Sequence[Any], evaluate: Callable[[], Mapping[str, float]] | None = None
    ) -> Outcome:
        """Quantize a trained model in place by its loss.

        Where torch.distributed is in use, every process calls this with its own batches; all end with the same
        quantized model. Buffers are those of rank 0, and metrics the mean over ranks.

        Args:
            model: The float model; on an error it is left as it was.
            batches: Calibration batches from the training data, at least one.
            evaluate: Measures the model as it is with the user's own metrics; None for no verdict.

        Returns:
            The plan, its certificate and the verdict.

        Raises:
            ValueError: If there are no batches, nothing can be quantized, or the budget cannot be met.
            TypeError: If the model does not take the batches.
        """
        plan = self.plan(model, batches)
        report = None
        if evaluate is None:
            with self._stage("quantize"):
                plan.bench.pack(plan.allocation.policy)
        else:
            report = self._report(plan, evaluate, keep=True)
        self._tell(1.0, "done")
        return Outcome(plan.groups, plan.taylor, plan.allocation, report)

    def judge(self, plan: Plan, evaluate: Callable[[], Mapping[str, float]]) -> Report:
        """Measure what the plan, and those that it is compared with, would do to the model; pack nothing for good.

        Args:
            plan: What `plan` returned; its model is left as it was.
            evaluate: Measures the model as it is with the user's own metrics.
        """
        return self._report(plan, evaluate, keep=False)

    def _report(self, plan: Plan, evaluate: Callable[[], Mapping[str, float]], keep: bool) -> Report:
        """Measure the plan and those that it is compared with; ``keep`` says whether the model stays packed."""
        with self._stage("quantize"):
            plan.bench.codes(plan.allocation.policy)
        with self._stage("verdict"):
            reestimated = self.predicts_repaired(plan.bench.model)
            verdict = Verdict(
                plan.bench, plan.groups, plan.taylor, lambda: mean_over_ranks(dict(evaluate())), reestimated
            )
            rows = verdict.measure(plan.allocation, self._within(0.5, 0.9), keep=keep)
        return Report(
            loss=plan.taylor.loss,
            models=rows.models,
            groups=rows.groups,
            repair=rows.repair,
            left_in_float=plan.groups.left_in_float,
            trials=plan.trials,
            solver=plan.allocation.to_dict(),
            seconds=dict(self.seconds),
            samples=sum(gather(sum(map(batch_weight, plan.bench.batches)))),
        )
