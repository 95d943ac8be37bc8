"""What is decided about a trained model: the bits, and the policy to keep."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from ..allocation import Allocation, allocate
from ..allocation.preparation import Preparation
from ..curvature import TaylorModel
from ..curvature.sanity import warn_of_few_that_decide, warn_of_wrong_order
from ..groups.groups import LayerGroups
from ..modules.recount import refuse_exceeded
from ..network.calibration import Calibration
from ..network.held_out import hold_out
from ..network.loss_change import LossChange
from ..report.rows import TrialRow
from ..targets import Target, Torch
from ..tools.distributed import on_rank_zero
from ..tools.progress import Progress, StageTimer
from ..tools.progress import silent as silently
from .counting import counted_budget
from .policy_evaluator import PolicyEvaluator
from .policy_selection import PolicySelection, other_policies
from .profiling import Profiled, measure
from .quantizer import Quantizer
from .settings import JobSettings


@dataclass(frozen=True)
class Decision:
    """What is known before anything is packed for good.

    Attributes:
        groups: The groups, and what stays in float.
        unshrunk: The Taylor model as it was measured.
        taylor: The Taylor model that was solved.
        allocation: The policy with its certificate.
        quantizer: Packs the model for a while; its batches are those that weights are fitted to while others judge.
        everything: The model and all its batches, where some of these judge.
        held_out: How many calibration samples are not among them, and judge; 0 if that cannot be.
        reestimated: Whether the loss is predicted as it is after BatchNorm statistics are measured again.
        evaluator: Where policies were tried; None if none was.
        trials: The policies that were measured before one was chosen.
    """

    groups: LayerGroups
    unshrunk: TaylorModel = field(repr=False)
    taylor: TaylorModel
    allocation: Allocation
    quantizer: Quantizer = field(repr=False, compare=False)
    everything: Calibration | None = field(default=None, repr=False, compare=False)
    held_out: int = 0
    reestimated: bool = False
    evaluator: PolicyEvaluator | None = field(default=None, repr=False, compare=False)
    trials: tuple[TrialRow, ...] = ()

    def recounting(self, target: Target) -> Decision:
        """Let the packed model be refused if it takes more than its budget allows."""
        self.quantizer.check = partial(
            refuse_exceeded,
            allocation=self.allocation,
            unused_bytes=self.groups.unused_bytes,
            stored_bits=None if isinstance(target, Torch) else target.stored_bits,
        )
        return self

    def settle(self) -> None:
        """Decide, where policies were measured, in which order the chosen one is rounded; a comparison does it too."""
        if self.evaluator is not None:
            self.evaluator.settle(self.allocation.policy)
            self.evaluator.warn_if_independent(self.allocation.policy)

    def fitted_to_all(self) -> Quantizer:
        """Return what packs the chosen policy in the end.

        Samples that have judged have no more to say once all is decided, and the packed model is fitted to them too: in
        the order of rounding, and with the repairs, that they have found no harm in.
        """
        policy, quantizer = self.allocation.policy, self.quantizer
        if self.everything is None:
            return quantizer
        if self.evaluator is not None:
            refused = self.evaluator.as_packed(policy).refused
        else:
            with quantizer.packed(policy):
                quantizer.repair.apply()
                refused = quantizer.repair.refused
        return quantizer.on_all(self.everything, policy, refused)

    def packed(self) -> AbstractContextManager[None]:
        """Pack the chosen policy for good and repair the model; an error in the ``with`` block unpacks it."""
        return self.fitted_to_all().packed_for_good(self.allocation.policy)


def decide(calibration: Calibration, settings: JobSettings, timer: StageTimer) -> Decision:
    """Decide the bits of a trained model, and change nothing in it.

    A part of the calibration data is held out: weights are rounded, the loss is profiled and repairs are fitted on the
    rest, and which policy, order of rounding and repairs are kept is judged on that part. The model that is packed in
    the end is fitted to all of it.

    Args:
        calibration: The float model and its batches.
        settings: What is wanted.
        timer: Times the stages.
    """
    everything = calibration
    calibration, judging = hold_out(calibration)
    solved = _Solved.of(calibration, judging, settings, timer)
    with timer.stage("quantize"):
        in_vain = settings.curvature.statistics == "auto" and solved.measures_statistics_in_vain()
    if in_vain:
        settings = replace(settings, repair=replace(settings.repair, batchnorm=False))
        solved = _Solved.of(calibration, judging, settings, timer, solved.known)
    settings, known, allocation, quantizer, evaluator = solved
    warn_of_wrong_order(known.unshrunk)
    warn_of_few_that_decide(known.unshrunk)
    taylor, held_out = known.taylor, 0 if judging is None else judging.samples
    reestimated = settings.predicts_repaired(calibration.model)
    kept = None if judging is None else everything
    decision = Decision(known.groups, known.unshrunk, taylor, allocation, quantizer, kept, held_out, reestimated)
    if evaluator is None:
        return decision.recounting(settings.target)
    with timer.stage("select"):
        others = other_policies(allocation, settings.selection.policies, settings.solver)
        selection = PolicySelection(evaluator, known.groups, taylor, settings.selection)
        again = {
            "estimator": settings.curvature.estimator,
            "draws": settings.curvature.draws,
            "chunk_size": settings.curvature.chunk_size,
            "seed": settings.curvature.seed,
            "reestimated": reestimated,
        }
        progress = timer.within(0.5, 0.6)
        found = selection.run(allocation, others, lambda local: solve(local, settings), progress=progress, **again)
    return replace(decision, allocation=found.allocation, evaluator=evaluator, trials=found.trials).recounting(
        settings.target
    )


class _Solved(NamedTuple):
    """A policy, and what it was found by.

    Attributes:
        settings: With what the budget's bounds are counted from.
        known: The Taylor model.
        allocation: The policy.
        quantizer: Packs it.
        evaluator: Where it and others are tried; None if none is measured.
    """

    settings: JobSettings
    known: Profiled
    allocation: Allocation
    quantizer: Quantizer
    evaluator: PolicyEvaluator | None

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        judging: Calibration | None,
        settings: JobSettings,
        timer: StageTimer,
        before: Profiled | None = None,
    ) -> _Solved:
        """Measure the Taylor model, solve it, and make ready to pack its policy.

        Args:
            calibration: What weights are fitted to.
            judging: What is held out.
            settings: What is wanted.
            timer: Times the stages.
            before: What was measured with other settings of the profile, whose rounded candidates are taken.
        """
        known = measure(calibration, settings, timer, before)
        settings = replace(settings, budget=counted_budget(calibration, settings, known))
        with timer.stage("allocate"):
            allocation = solve(known.taylor, settings, timer.within(0.4, 0.5))
        layers = [layer for group in known.groups for layer in group.layers]
        with timer.stage("quantize"):
            judge = None if judging is None else LossChange(judging, known.taylor.loss)
            repair, folder = settings.repair, settings.cache_dir
            quantizer = Quantizer(calibration, layers, repair, known.rounded, judge, folder)
        evaluator = None
        if settings.selection.measures:
            with timer.stage("select"):
                evaluator = PolicyEvaluator(quantizer, known.taylor.loss)
        return cls(settings, known, allocation, quantizer, evaluator)

    def measures_statistics_in_vain(self) -> bool:
        """Tell whether held-out data says that BatchNorm statistics are better left as they are.

        What the loss is profiled for, and layers are rounded for, has to be what is packed.
        """
        if self.evaluator is None or not self.quantizer.repair.may_leave_statistics:
            return self.quantizer.statistics_do_harm(self.allocation.policy)
        return "batchnorm" in self.evaluator.as_profiled(self.allocation.policy).refused  # which is asked for again


def solve(taylor: TaylorModel, settings: JobSettings, progress: Progress = silently) -> Allocation:
    """Choose the bits; of several processes rank 0 alone solves, and all get its policy."""
    solved: list[Allocation] = []
    options: dict[str, Any] = vars(settings.solver)

    def on_this_rank() -> Allocation:
        solved.append(allocate(taylor, settings.budget, **options, progress=progress))
        return replace(solved[0], preparation=None)  # may hold cost functions, which cannot be sent

    sent = on_rank_zero(on_this_rank)
    if solved:
        return solved[0]
    return replace(sent, preparation=Preparation.make(taylor, settings.budget, settings.solver.rules))
