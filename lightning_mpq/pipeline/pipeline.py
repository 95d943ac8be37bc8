"""The whole job on a trained model: decide the bits, quantize, repair, and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ..allocation import Allocation
from ..curvature import TaylorModel
from ..curvature.resampling import blocks_of
from ..groups.groups import LayerGroups
from ..network.calibration import Calibration
from ..network.placement import refuse_different_layers
from ..policy import BitPolicy
from ..report.frontier_record import FrontierRecord
from ..report.metric_values import MetricValues
from ..report.records import Report
from ..report.rows import PairsRow
from ..tools.distributed import active, errors_shared, mean_over_ranks, on_rank_zero, share_buffers
from ..tools.progress import Progress, StageTimer, silent
from ..tools.warning import warn
from .comparison import Comparison
from .frontier_record import frontier_record
from .planning import Decision, decide
from .policy_evaluator import PolicyEvaluator
from .preflight import refuse_packed
from .quantizer import Quantizer
from .receipt import receipt
from .settings import JobSettings
from .target_rows import target_rows

Metrics = Callable[[], Mapping[str, float]]
"""Measures the model as it is with the user's own metrics."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the pipeline found and did.

    Attributes:
        groups: The groups, and what stayed in float.
        taylor: The Taylor model; other budgets need no new profile.
        allocation: The policy with its certificate.
        report: The comparison, or None if it was not asked for.
    """

    groups: LayerGroups
    taylor: TaylorModel
    allocation: Allocation
    report: Report | None


@dataclass(frozen=True)
class Pipeline:
    """Decides the bits of a trained model, and puts them into effect.

    Where torch.distributed is in use, every process calls the methods with its own batches; all get the same policy and
    end with the same model. Buffers are those of rank 0, and metrics the mean over ranks.

    Attributes:
        settings: What is wanted.
        timer: Times the stages, and reports progress.
    """

    settings: JobSettings
    timer: StageTimer = field(default_factory=StageTimer, compare=False)

    @torch.inference_mode(False)  # its caller may evaluate
    def run(self, model: nn.Module, batches: Iterable[Any], metrics: Metrics | None = None) -> Outcome:
        """Quantize a trained model in place by its loss.

        Args:
            model: The float model; on an error it is left as it was.
            batches: Calibration batches from the training data, at least one.
            metrics: Measures the model as it is with the user's own metrics; None for no comparison.

        Returns:
            The policy, its certificate and the comparison.

        Raises:
            ValueError: If there are no batches, nothing can be quantized, or the budget cannot be met.
            TypeError: If the model does not take the batches.
        """
        decision = self.decide(model, batches)
        report = None if metrics is None else self.compared(decision, metrics, keep=True)
        if report is None:
            with self.timer.stage("quantize"):
                decision.settle()
                with decision.packed():
                    pass
        self.timer.report(1.0, "done")
        return Outcome(decision.groups, decision.taylor, decision.allocation, report)

    def decide(self, model: nn.Module, batches: Iterable[Any]) -> Decision:
        """Decide the bits of a trained model, and change nothing in it; see `run`."""
        self.timer.seconds.clear()
        calibration = self.calibration(model, batches).listed("calibration")
        refuse_packed(model)
        refuse_different_layers(model)
        share_buffers(model)
        return decide(calibration, self.settings, self.timer)

    def follow(self, model: nn.Module, policy: BitPolicy, batches: Iterable[Any]) -> Quantizer:
        """Make ready to quantize a model by a given policy; nothing is profiled.

        Args:
            model: The float model, left as it was; its buffers become those of rank 0.
            policy: The policy.
            batches: Calibration batches.
        """
        refuse_different_layers(model)
        share_buffers(model)
        calibration = self.calibration(model, batches).first(None)
        cache_dir = self.settings.cache_dir
        return Quantizer(calibration, list(policy.by_layer()), self.settings.repair, cache_dir=cache_dir)

    def compared(self, decision: Decision, metrics: Metrics, *, keep: bool = False) -> Report | None:
        """Do what `compare` does; where that fails, say so and return None, since the policy is worth more than it.

        The policies that are compared with may go wrong where the chosen one does not. Of several processes all fail:
        one that goes on alone would leave the others waiting.
        """
        try:
            return self.compare(decision, metrics, keep=keep)
        except Exception as error:
            if active():
                raise
            warn(
                f"The comparison failed, so there is no report ({type(error).__name__}: {error}). The chosen policy "
                "is followed without; compare=False leaves the comparison out."
            )
            return None

    def compare(self, decision: Decision, metrics: Metrics, *, keep: bool = False) -> Report:
        """Measure what the chosen policy, and those that it is compared with, do to the model.

        Args:
            decision: What `decide` returned.
            metrics: Measures the model as it is with the user's own metrics.
            keep: Whether the model stays packed under the chosen policy; otherwise it is left as it was.
        """
        timer, quantizer = self.timer, decision.quantizer
        with timer.stage("quantize"):
            quantizer.codes(decision.allocation.policy)
        with timer.stage("frontier"):
            timer.report(0.6, "look at other budgets")
            others = self._frontier(decision)
        with timer.stage("compare"):
            evaluator = decision.evaluator or PolicyEvaluator(quantizer, decision.taylor.loss)
            over_ranks = partial(metrics_over_ranks, metrics)
            comparison = Comparison(evaluator, decision.groups, decision.taylor, over_ranks, decision.reestimated)
            packing = decision.packed if keep else None
            rows = comparison.measure(decision.allocation, timer.within(0.65, 0.9), packing)
        with timer.stage("stability"):
            stability = stability_row(decision, self.settings.selection.resamples, timer.within(0.9, 1.0))
        return Report(
            loss=decision.taylor.loss,
            models=rows.models,
            groups=rows.groups,
            repair=rows.repair,
            left_in_float=decision.groups.left_in_float,
            trials=decision.trials,
            pairs=pairs_row(decision),
            solver={**decision.allocation.to_dict(), "stability": stability},
            seconds=dict(timer.seconds),
            samples=quantizer.calibration.samples + decision.held_out,
            coverage=decision.groups.coverage,
            held_out=decision.held_out,
            frontier=others,
            targets=target_rows(quantizer.model, decision.groups, decision.allocation.policy, self.settings.target),
            receipt=receipt(decision.taylor, decision.allocation.policy, self.settings.curvature, self.settings.solver),
        )

    def _frontier(self, decision: Decision) -> FrontierRecord:
        """Look at other budgets; of several processes rank 0 alone, and all get what it found."""
        solver = self.settings.solver
        return on_rank_zero(lambda: frontier_record(decision.taylor, decision.unshrunk, decision.allocation, solver))

    def calibration(self, model: nn.Module, batches: Iterable[Any]) -> Calibration:
        """Return the record of a model and its batches."""
        settings = self.settings
        likelihood = settings.curvature.known_likelihood
        return Calibration(model, batches, settings.forward_fn, settings.loss_fn, likelihood)


def pairs_row(decision: Decision) -> PairsRow:
    """Return what the terms between groups contribute to the predicted loss of the chosen policy."""
    policy = decision.allocation.policy
    measured, solved = decision.unshrunk.predict(policy), decision.taylor.predict(policy)
    return PairsRow(measured.between, measured.between_error, solved.between, measured.value)


def stability_row(decision: Decision, resamples: int, progress: Progress = silent) -> dict[str, Any] | None:
    """Return how stable the policy is; None where nobody asks, or nobody can tell."""
    allocation = decision.allocation
    if not resamples or allocation.minimised == "bytes" or blocks_of(decision.taylor) < 2:
        return None
    return on_rank_zero(lambda: allocation.stability(resamples, progress=progress).to_dict())


def metrics_over_ranks(metrics: Metrics) -> MetricValues:
    """Return the mean of metrics over ranks; an error of one rank in measuring them is raised on all."""
    with errors_shared():
        own = MetricValues(metrics())
    return MetricValues(mean_over_ranks(dict(own)), own.intervals)
