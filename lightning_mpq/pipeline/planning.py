"""What is decided about a trained model: its groups, their rounding, the Taylor model behind the bits, and the bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..allocation import Allocation, Budget, allocate
from ..allocation.preparation import Preparation
from ..curvature import TaylorModel, profile
from ..curvature.sanity import warn_of_wrong_order
from ..curvature.shrinkage import shrink
from ..groups.candidates import make_candidates
from ..groups.groups import LayerGroups, find_groups
from ..modules import packed_layers
from ..network.evaluator import LossFn
from ..network.forward import ForwardFn
from ..options import (
    CandidateOptions,
    CurvatureOptions,
    LoopOptions,
    RepairOptions,
    SolverOptions,
)
from ..policy import BitPolicy
from ..repair.repair import reestimates
from ..report import TrialRow
from ..rounding.independent import round_candidates
from ..rounding.rounded_weights import RoundedWeights
from ..tools.distributed import gather, on_rank_zero, refuse_empty_ranks, share_buffers
from ..tools.progress import StagedWork
from .policy_evaluator import Workbench
from .policy_selection import ClosedLoop, other_plans

# With re-estimated statistics a score belongs to a whole chunk: many small chunks and several draws, at the price of
# about ten forward passes over the same samples.
_CHUNK_SIZE = 32
_DRAWS_A_CHUNK = 4


@dataclass(frozen=True)
class Plan:
    """What is known before anything is packed.

    Attributes:
        groups: The groups, and what stays in float.
        taylor: The Taylor model.
        allocation: The plan with its certificate.
        bench: Where the plan can be tried, and packed for good.
        trials: The plans that were measured before it was chosen.
    """

    groups: LayerGroups
    taylor: TaylorModel
    allocation: Allocation
    bench: Workbench = field(repr=False, compare=False)
    trials: tuple[TrialRow, ...] = ()

    @property
    def rounded(self) -> RoundedWeights | None:
        """Rounded weights of all candidates; None if all schemes are rounded to nearest."""
        return self.bench.rounded


@dataclass
class Planner(StagedWork):
    """Decides the bits of a trained model.

    Attributes:
        budget: Upper bounds on what the quantized model costs.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        solver: How the bits are assigned.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        loss_fn: ``(model, batch) -> scalar``; by default the model's ``training_step``.
        repair: What makes up for rounding once the plan is chosen.
        loop: Whether several plans are measured before one is chosen.
        cache_dir: Folder where Taylor models are kept and found again; None for no cache.
    """

    budget: Budget
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    solver: SolverOptions = field(default_factory=SolverOptions)
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    repair: RepairOptions = field(default_factory=RepairOptions)
    loop: LoopOptions = field(default_factory=LoopOptions)
    cache_dir: str | Path | None = None

    def plan(self, model: nn.Module, batches: Sequence[Any]) -> Plan:
        """Decide the bits of a trained model, and change nothing in it.

        Where torch.distributed is in use, every process calls this with its own batches, and all get the same plan.

        Args:
            model: The float model, left as it was; its buffers become those of rank 0.
            batches: Calibration batches, at least one.

        Returns:
            The plan, with the rounded weights of all candidates.

        Raises:
            ValueError: If there are no batches, nothing can be quantized, or the budget cannot be met.
            TypeError: If the model does not take the batches.
        """
        self.seconds.clear()
        _check(model, batches)
        share_buffers(model)
        groups, rounded, unshrunk = self._profiled(model, batches)
        taylor = shrink(unshrunk) if self.curvature.shrink else unshrunk
        with self._stage("allocate"):
            allocation = self.allocate(taylor)
        bench = Workbench(
            model,
            batches,
            [layer for group in groups for layer in group.layers],
            rounded,
            taylor.loss,
            options=self.repair,
            likelihood=self.curvature.known_likelihood,
            forward_fn=self.forward_fn,
            loss_fn=self.loss_fn,
        )
        plan = Plan(groups, taylor, allocation, bench)
        return self._best_measured(plan, unshrunk) if self.loop.measures else plan

    def follow(self, model: nn.Module, policy: BitPolicy, batches: Sequence[Any]) -> Workbench:
        """Make ready to quantize a model by a given plan; nothing is profiled.

        Args:
            model: The float model, left as it was; its buffers become those of rank 0.
            policy: The plan.
            batches: Calibration batches.
        """
        share_buffers(model)
        layers = list(policy.by_layer())
        return Workbench(model, batches, layers, options=self.repair, forward_fn=self.forward_fn)

    def _best_measured(self, plan: Plan, unshrunk: TaylorModel) -> Plan:
        """Return the best of several plans as measured on the batches."""
        with self._stage("allocate"):
            others = other_plans(plan.taylor, unshrunk, self.budget, plan.allocation, self.loop.plans, self.solver)
        with self._stage("trials"):
            self._tell(0.5, "measure the best plans")
            loop = ClosedLoop(plan.bench, plan.groups, plan.taylor, self.loop)
            sampling = self._sampling(plan.bench.model)
            again = {"curvature": self.curvature.estimator, "seed": self.curvature.seed, **sampling}
            found = loop.run(plan.allocation, others, partial(self.allocate, told=False), **again)
        return replace(plan, allocation=found.allocation, trials=found.trials)

    def allocate(self, taylor: TaylorModel, told: bool = True) -> Allocation:
        """Choose the bits; of several processes rank 0 alone solves, and all get its plan.

        Args:
            taylor: The Taylor model.
            told: Whether progress is told.
        """
        progress = self._within(0.4, 0.5) if told else None
        solved: list[Allocation] = []

        def solve() -> Allocation:
            solved.append(allocate(taylor, self.budget, **vars(self.solver), progress=progress))
            return replace(solved[0], preparation=None)  # may hold cost functions, which cannot be sent

        plan = on_rank_zero(solve)
        if solved:
            return solved[0]
        return replace(plan, preparation=Preparation.make(taylor, self.budget, self.solver.rules))

    def measure(
        self, model: nn.Module, batches: Sequence[Any]
    ) -> tuple[LayerGroups, RoundedWeights | None, TaylorModel]:
        """Find the groups, round their candidates and measure the Taylor model; the model is left as it was.

        Returns:
            The groups; rounded weights, or None if all schemes are rounded to nearest; the Taylor model.
        """
        groups, rounded, taylor = self._profiled(model, batches)
        return groups, rounded, shrink(taylor) if self.curvature.shrink else taylor

    def _profiled(
        self, model: nn.Module, batches: Sequence[Any]
    ) -> tuple[LayerGroups, RoundedWeights | None, TaylorModel]:
        """Do what `measure` does, and leave the noise in the Taylor model."""
        groups = find_groups(model, **self.candidates.rules())
        candidates = make_candidates(groups, schemes=self.candidates.offered_schemes())
        rounded = None
        # Of widths alone the best grid is searched, whatever the rounding; schemes that were named stay as they are.
        if self.candidates.schemes is None or any(candidate.scheme.needs_inputs for candidate in candidates):
            with self._stage("round"):
                rounded = round_candidates(
                    model,
                    batches,
                    groups,
                    candidates,
                    forward_fn=self.forward_fn,
                    progress=self._within(0.0, 0.15),
                )
                candidates = rounded.candidates
        with self._stage("profile"):
            taylor = profile(
                model,
                batches,
                groups=groups,
                candidates=candidates,
                rounded=rounded,
                curvature=self.curvature.estimator,
                loss=self.curvature.loss,
                likelihood=self.curvature.likelihood,
                tolerance=self.curvature.tolerance,
                seed=self.curvature.seed,
                **self._sampling(model),
                forward_fn=self.forward_fn,
                loss_fn=self.loss_fn,
                cache_dir=self.cache_dir,
                progress=self._within(0.15, 0.4),
            )
        warn_of_wrong_order(taylor)
        return groups, rounded, taylor

    def _sampling(self, model: nn.Module) -> dict[str, Any]:
        """Return statistics, draws and chunk size, where they are left open, as suits the model."""
        chosen = self.curvature
        statistics = "reestimated" if self.predicts_repaired(model) else "frozen"
        scores_batches = statistics == "reestimated" and chosen.estimator == "fisher"
        return {
            "statistics": statistics,
            "draws": chosen.draws or (_DRAWS_A_CHUNK if scores_batches else 1),
            "chunk_size": chosen.chunk_size or (_CHUNK_SIZE if scores_batches else None),
        }

    def predicts_repaired(self, model: nn.Module) -> bool:
        """Tell whether the loss is predicted as it is after BatchNorm statistics are measured again."""
        if self.curvature.statistics == "auto":
            return reestimates(model, self.repair)
        return self.curvature.statistics == "reestimated"


def _check(model: nn.Module, batches: Sequence[Any]) -> None:
    refuse_empty_ranks(gather(len(batches)))
    if not batches:
        raise ValueError("Calibration needs at least one batch of training data, got none.")
    if packed := packed_layers(model):
        raise ValueError(
            f"The model is quantized already (layer {next(iter(packed))!r} is packed); start from the float model."
        )
