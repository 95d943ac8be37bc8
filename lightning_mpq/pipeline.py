"""The whole job on a trained model: profile, allocate, quantize, repair, and the verdict on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .allocation import Allocation, Budget, allocate
from .candidates import make_candidates
from .correction import reestimate_batchnorm
from .curvature import TaylorModel, profile
from .curvature.batches import ForwardFunction, LossFunction, sample_count
from .groups import LayerGroups, find_groups
from .modules import packed_layers
from .options import CandidateOptions, CurvatureOptions, SolverOptions
from .quantize import apply_policy
from .report import Report
from .verdict import Verdict, compared_policies

Progress = Callable[[float, str], None]


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
class Pipeline:
    """Everything that the job needs to know, apart from the model and its data.

    Attributes:
        budget: Upper bounds on what the quantized model costs.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        solver: How the bits are assigned.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        loss_fn: ``(model, batch) -> scalar``; by default the model's ``training_step``.
        reestimate: Whether BatchNorm statistics are measured again behind quantized weights.
        cache_dir: Folder where Taylor models are kept and found again; None for no cache.
        progress: Told how far the job is, from 0 to 1, and what it does.
    """

    budget: Budget
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    solver: SolverOptions = field(default_factory=SolverOptions)
    forward_fn: ForwardFunction | None = None
    loss_fn: LossFunction | None = None
    reestimate: bool = True
    cache_dir: str | Path | None = None
    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(
        self, model: nn.Module, batches: Sequence[Any], evaluate: Callable[[], Mapping[str, float]] | None = None
    ) -> Outcome:
        """Quantize a trained model in place by its loss.

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
        self.seconds.clear()
        _check(model, batches)
        groups, taylor = self.measure(model, batches)
        with self._stage("allocate"):
            allocation = allocate(taylor, self.budget, **vars(self.solver), progress=self._within(0.35, 0.5))
        report = None
        if evaluate is None:
            with self._stage("quantize"):
                apply_policy(model, allocation.policy, batches, forward_fn=self.forward_fn, reestimate=self.reestimate)
        else:
            report = self._quantize_with_verdict(model, batches, groups, taylor, allocation, evaluate)
        self._tell(1.0, "done")
        return Outcome(groups, taylor, allocation, report)

    def measure(self, model: nn.Module, batches: Sequence[Any]) -> tuple[LayerGroups, TaylorModel]:
        """Find the groups and measure the Taylor model; the model is left as it was."""
        rules = {key: value for key, value in vars(self.candidates).items() if key not in ("bits", "schemes")}
        groups = find_groups(model, **rules)
        offered = make_candidates(groups, self.candidates.bits, self.candidates.schemes)
        settings = dict(vars(self.curvature))
        with self._stage("profile"):
            taylor = profile(
                model,
                batches,
                groups=groups,
                candidates=offered,
                curvature=settings.pop("estimator"),
                **settings,
                forward_fn=self.forward_fn,
                loss_fn=self.loss_fn,
                cache_dir=self.cache_dir,
                progress=self._within(0.0, 0.35),
            )
        return groups, taylor

    def _quantize_with_verdict(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        groups: LayerGroups,
        taylor: TaylorModel,
        allocation: Allocation,
        evaluate: Callable[[], Mapping[str, float]],
    ) -> Report:
        """Measure float, uniform and additive plan, then quantize for good and measure that."""
        likelihood = None if self.curvature.likelihood == "auto" else self.curvature.likelihood
        with self._stage("verdict"):
            verdict = Verdict(
                model, batches, groups, taylor, evaluate, self.forward_fn, self.loss_fn, likelihood, self.reestimate
            )
            rows = [verdict.float_row()]
            for number, (name, policy) in enumerate(compared_policies(taylor, allocation).items()):
                self._tell(0.5 + 0.1 * number, f"measure the {name}")
                rows.append(verdict.trial(name, policy))
            self._tell(0.7, "measure each group alone")
            group_rows = verdict.groups_alone(allocation.policy)
        self._tell(0.9, "quantize")
        with self._stage("quantize"):
            undo = apply_policy(model, allocation.policy, reestimate=False)
        try:
            with self._stage("verdict"):
                frozen = verdict.loss_change()
            if self.reestimate:
                with self._stage("quantize"):
                    reestimate_batchnorm(model, batches, self.forward_fn)
            with self._stage("verdict"):
                rows.append(verdict.row("chosen plan", allocation.policy, frozen))
        except BaseException:
            undo()
            raise
        return Report(
            loss=taylor.loss,
            models=tuple(rows),
            groups=group_rows,
            left_in_float=groups.left_in_float,
            solver=allocation.to_dict(),
            seconds=dict(self.seconds),
            samples=sum(sample_count(batch) or 0 for batch in batches),
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Add the wall time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def _tell(self, fraction: float, message: str) -> None:
        if self.progress is not None:
            self.progress(fraction, message)

    def _within(self, start: float, stop: float) -> Progress | None:
        """Return a progress function for a stage that takes the job from ``start`` to ``stop``."""
        return lambda fraction, message: self._tell(start + fraction * (stop - start), message)


def _check(model: nn.Module, batches: Sequence[Any]) -> None:
    if not batches:
        raise ValueError("Calibration needs at least one batch of training data, got none.")
    if packed := packed_layers(model):
        raise ValueError(
            f"The model is quantized already (layer {next(iter(packed))!r} is packed); start from the float model."
        )
