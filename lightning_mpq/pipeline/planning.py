"""What is decided about a trained model: groups, rounded candidates, the Taylor model, the bits, the policy to keep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ..allocation import Allocation, Budget, allocate
from ..allocation.preparation import Preparation
from ..allocation.workload import Workload
from ..curvature import TaylorModel, profile, shrink
from ..curvature.sanity import warn_of_wrong_order
from ..curvature.silent_groups import silent_groups
from ..export.example_inputs import ExampleInputs
from ..groups.groups import LayerGroups
from ..modules.recount import refuse_exceeded
from ..modules.workload import measured as with_workload
from ..network.calibration import Calibration
from ..network.held_out import hold_out
from ..network.loss_change import LossChange
from ..report.records import TrialRow
from ..rounding.independent import round_candidates
from ..rounding.rounded_weights import RoundedWeights
from ..targets import Target, Torch, offer, with_file_rest
from ..tools.distributed import on_rank_zero
from ..tools.progress import Progress, StageTimer
from ..tools.progress import silent as silently
from .kept_rounding import KeptRounding
from .policy_evaluator import PolicyEvaluator
from .policy_selection import PolicySelection, other_policies
from .quantize import Quantizer
from .settings import JobSettings


@dataclass(frozen=True)
class Profiled:
    """What is known of a model before any bits are assigned.

    Attributes:
        groups: The groups, and what stays in float.
        rounded: Rounded weights of all candidates; None if all schemes are rounded to nearest.
        unshrunk: The Taylor model as it was measured.
        taylor: The Taylor model to be solved.
    """

    groups: LayerGroups
    rounded: RoundedWeights | None
    unshrunk: TaylorModel
    taylor: TaylorModel


@dataclass(frozen=True)
class Decision:
    """What is known before anything is packed for good.

    Attributes:
        groups: The groups, and what stays in float.
        unshrunk: The Taylor model as it was measured.
        taylor: The Taylor model that was solved.
        allocation: The policy with its certificate.
        quantizer: Packs the model, for a while or for good; its batches are those that weights are fitted to.
        held_out: How many calibration samples are not among them, and judge; 0 if that cannot be.
        evaluator: Where policies were tried; None if none was.
        trials: The policies that were measured before one was chosen.
    """

    groups: LayerGroups
    unshrunk: TaylorModel = field(repr=False)
    taylor: TaylorModel
    allocation: Allocation
    quantizer: Quantizer = field(repr=False, compare=False)
    held_out: int = 0
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


def decide(calibration: Calibration, settings: JobSettings, timer: StageTimer) -> Decision:
    """Decide the bits of a trained model, and change nothing in it.

    A part of the calibration data is held out: weights are rounded, the loss is profiled and repairs are fitted on the
    rest, and which policy, order of rounding and repairs are kept is judged on that part.

    Args:
        calibration: The float model and its batches.
        settings: What is wanted.
        timer: Times the stages.
    """
    calibration, judging = hold_out(calibration)
    known = measure(calibration, settings, timer)
    taylor = known.taylor
    settings = replace(settings, budget=counted_budget(calibration, settings, known))
    with timer.stage("allocate"):
        allocation = solve(taylor, settings, timer.within(0.4, 0.5))
    layers = [layer for group in known.groups for layer in group.layers]
    with timer.stage("quantize"):
        judge = None if judging is None else LossChange(judging, taylor.loss)
        quantizer = Quantizer(calibration, layers, settings.repair, known.rounded, judge)
    held_out = 0 if judging is None else judging.samples
    decision = Decision(known.groups, known.unshrunk, taylor, allocation, quantizer, held_out)
    if not settings.selection.measures:
        return decision.recounting(settings.target)
    with timer.stage("select"):
        others = other_policies(allocation, settings.selection.policies, settings.solver)
        evaluator = PolicyEvaluator(quantizer, taylor.loss)
        selection = PolicySelection(evaluator, known.groups, taylor, settings.selection)
        again = {
            "estimator": settings.curvature.estimator,
            "draws": settings.curvature.draws,
            "chunk_size": settings.curvature.chunk_size,
            "seed": settings.curvature.seed,
            "reestimated": settings.predicts_repaired(calibration.model),
        }
        progress = timer.within(0.5, 0.6)
        found = selection.run(allocation, others, lambda local: solve(local, settings), progress=progress, **again)
    return replace(decision, allocation=found.allocation, evaluator=evaluator, trials=found.trials).recounting(
        settings.target
    )


def counted_budget(calibration: Calibration, settings: JobSettings, known: Profiled) -> Budget:
    """Return the budget with what its bounds are counted from: a forward pass, a file that is written.

    Of several processes rank 0 counts, and all get the numbers: costs of the user's own may not travel.

    Raises:
        ValueError: If nobody can tell how the target's file is to be called.
    """
    workload, rest = on_rank_zero(lambda: _counted(calibration, settings, known))
    return replace(settings.budget, workload=workload, file_rest=rest)


def _counted(calibration: Calibration, settings: JobSettings, known: Profiled) -> tuple[Workload | None, int | None]:
    model, candidates = calibration.model, known.taylor.candidates
    budget = with_workload(settings.budget, model, calibration, known.groups, candidates)
    if not budget.needs_file_rest:
        return budget.workload, budget.file_rest
    if settings.forward_fn is not None:
        raise ValueError(
            "file_bytes is counted from a file that is written, and forward_fn= hides what forward takes. Say it by "
            "lightning_mpq.targets.with_file_rest(budget, target, model, groups, candidates, example_inputs).file_rest,"
            " and pass Budget(file_bytes=..., file_rest=...)."
        )
    batch = next(calibration.filled())
    inputs = ExampleInputs.of_batch(model, batch)
    budget = with_file_rest(budget, settings.target, model, known.groups, candidates, inputs)
    return budget.workload, budget.file_rest


def measure(calibration: Calibration, settings: JobSettings, timer: StageTimer) -> Profiled:
    """Find the groups, round their candidates and measure the Taylor model; the model is left as it was."""
    model, options, curvature = calibration.model, settings.candidates, settings.curvature
    groups, candidates = offer(settings.target, model, options, calibration if settings.calls_forward else None)
    rounded = None
    # Of widths alone the best grid is searched, whatever the rounding; schemes that were named stay as they are.
    by_inputs = options.schemes is None or any(candidate.scheme.weight.needs_inputs for candidate in candidates)
    if by_inputs or any((inputs := each.scheme.quantized_input) and inputs.needs_range for each in candidates):
        with timer.stage("round"):
            progress = timer.within(0.0, 0.15)
            kept = None if settings.cache_dir is None else KeptRounding(settings.cache_dir, calibration)
            rounded = round_candidates(model, calibration, groups, candidates, progress=progress, kept=kept)
            candidates = rounded.candidates

    def profiled(progress: Progress) -> TaylorModel:
        return profile(
            model,
            calibration,
            groups=groups,
            candidates=candidates,
            rounded=rounded,
            estimator=curvature.estimator,
            loss=curvature.loss,
            statistics="reestimated" if settings.predicts_repaired(model) else "frozen",
            draws=curvature.draws,
            chunk_size=curvature.chunk_size,
            tolerance=curvature.tolerance,
            shrink=False,
            seed=curvature.seed,
            cache_dir=settings.cache_dir,
            progress=progress,
        )

    with timer.stage("profile"):
        unshrunk = profiled(timer.within(0.15, 0.4))
        if silent := silent_groups(unshrunk, model, rounded):
            groups = groups.without(model, silent, "no output reacts to it on the calibration batches")
            candidates = tuple(candidate for candidate in candidates if candidate.group not in silent)
            rounded = None if rounded is None else replace(rounded, candidates=candidates)
            unshrunk = profiled(silently)
    warn_of_wrong_order(unshrunk)
    return Profiled(groups, rounded, unshrunk, shrink(unshrunk) if curvature.shrink else unshrunk)


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
