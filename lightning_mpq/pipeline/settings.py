"""All that a user says of a job, in one record."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..allocation import Budget
from ..curvature.estimators.registry import estimator_named, modelled_loss
from ..network.forward import ForwardFn, LossFn
from ..options import CandidateOptions, CurvatureOptions, RepairOptions, SelectionOptions, SolverOptions
from ..repair.repair import reestimates
from ..targets import Target, Torch


@dataclass(frozen=True)
class JobSettings:
    """What is wanted of a quantization.

    Attributes:
        budget: Upper bounds on what the quantized model costs.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        solver: How the bits are assigned.
        selection: Whether several policies are measured before one is chosen.
        repair: What makes up for rounding once the policy is chosen.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        loss_fn: ``(model, batch) -> scalar``; by default the model's ``training_step``.
        target: The runtime that the policy is for.
        cache_dir: Folder where rounded weights and Taylor models are kept and found again; None for no cache.
    """

    budget: Budget
    candidates: CandidateOptions = field(default_factory=CandidateOptions)
    curvature: CurvatureOptions = field(default_factory=CurvatureOptions)
    solver: SolverOptions = field(default_factory=SolverOptions)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    repair: RepairOptions = field(default_factory=RepairOptions)
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    target: Target = field(default_factory=Torch)
    cache_dir: str | Path | None = None

    def predicts_repaired(self, model: nn.Module) -> bool:
        """Tell whether the loss is predicted as it is after BatchNorm statistics are measured again."""
        if self.curvature.statistics == "auto":
            return reestimates(model, self.repair)
        return self.curvature.statistics == "reestimated"

    @property
    def calls_forward(self) -> bool:
        """Whether the model's outputs are asked for; a task loss alone may be computed in any other way."""
        estimator = estimator_named(self.curvature.estimator)
        needs_inputs = self.candidates.rounding != "nearest"
        return needs_inputs or estimator.asks_for_likelihood(modelled_loss(estimator, self.curvature.loss))
