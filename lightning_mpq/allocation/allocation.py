"""The chosen policy with its certificate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from ..curvature.taylor_model import Prediction
from ..policy import BitPolicy
from ..tools.progress import Progress, silent
from .stability import Stability
from .status import SolveStatus

Objective = Literal["quadratic", "additive"]
OBJECTIVES: tuple[Objective, ...] = ("quadratic", "additive")


class SolvedProblem(Protocol):
    """What an allocation asks of the problem that it solves; a `Preparation` is one."""

    @property
    def unit(self) -> str:
        """What a predicted loss is counted in."""

    def facts(self, policy: BitPolicy, objective: Objective) -> dict[str, Any]:
        """Return what an allocation says of its policy, whoever found it."""

    def stability(self, policy: BitPolicy, additive: bool, resamples: int, seed: int, progress: Progress) -> Stability:
        """Return how much a policy depends on the samples that were profiled."""


@dataclass(frozen=True)
class Allocation:
    """A policy, what it is predicted to cost, and the proof of how good it is.

    Attributes:
        policy: Scheme of each group.
        prediction: Predicted change of the loss with its parts: value, gradient, within and between groups.
        objective: What was minimised: ``"quadratic"`` (the whole model) or ``"additive"`` (groups alone).
        value: The minimised objective at this policy: the predicted loss, unless additive, or bytes.
        lower_bound: Proved: no policy within budget and rules has a smaller objective.
        reference: Magnitude that the gap is measured against if it exceeds ``|value|`` (the optimum may be
            near zero or negative): a hundredth of the loss of the widest feasible uniform policy.
        costs: Every cost of the policy: average_bits, bytes, ...
        limits: The budget's bounds, by the same names.
        prices: What one more unit of each bounded cost would save, in loss per unit, at the relaxed solution.
        status: How the solve ended; ``status.advice`` says what to do.
        seconds: Wall time of each step.
        nodes: Nodes of the branch and bound.
        additive_policy: The policy that the additive objective would have chosen under the same budget.
        additive_loss: What that policy is predicted to cost by the whole model.
        prediction_error: Standard error of the prediction as far as the model knows it.
        minimised: ``"loss"``, or ``"bytes"`` if the budget bounds the loss; ``value`` and bound are of that.
        details: What special options report.
        preparation: The model, budget and rules that were solved; what `explain` looks at.

    Example::

        allocation = mpq.allocate(taylor, mpq.Budget(average_bits=3.0))
        allocation.policy.bits()                 # group to bits
        allocation.gap, allocation.status        # how far from the best policy it can be at most, and why
        print(mpq.explain(allocation))           # what a step more or less would cost in each group
        mpq.quantize(model, allocation.policy, batches)
    """

    policy: BitPolicy
    prediction: Prediction
    objective: Objective
    value: float
    lower_bound: float
    reference: float
    costs: Mapping[str, float]
    limits: Mapping[str, float]
    prices: Mapping[str, float]
    status: SolveStatus
    seconds: Mapping[str, float]
    nodes: int = 0
    additive_policy: BitPolicy | None = None
    additive_loss: float | None = None
    prediction_error: float | None = None
    minimised: Literal["loss", "bytes"] = "loss"
    details: Mapping[str, Any] = field(default_factory=dict)
    preparation: SolvedProblem | None = field(default=None, repr=False, compare=False)

    @property
    def predicted_loss(self) -> float:
        """Predicted loss after quantization minus float loss."""
        return self.prediction.value

    @property
    def unit(self) -> str:
        """What the predicted loss is counted in; empty where the problem is not at hand."""
        return "" if self.preparation is None else self.preparation.unit

    @property
    def absolute_gap(self) -> float:
        """How much a better policy could save at most, which is objective minus lower bound."""
        return max(self.value - self.lower_bound, 0.0)

    @property
    def gap(self) -> float:
        """The absolute gap relative to ``max(|value|, reference)``."""
        scale = max(abs(self.value), self.reference)
        return self.absolute_gap / scale if scale > 0 else 0.0

    @property
    def additive_excess(self) -> float | None:
        """How much worse the additive policy is predicted to be, relative to this policy's loss."""
        if self.additive_loss is None or self.predicted_loss == 0:
            return None
        return (self.additive_loss - self.predicted_loss) / abs(self.predicted_loss)

    def with_policy(self, policy: BitPolicy) -> Allocation:
        """Return the record of another policy under the same model and budget; bound and status stay those of this one.

        Args:
            policy: One of the candidates for each group.
        """
        assert self.preparation is not None
        return replace(self, **self.preparation.facts(policy, self.objective))

    def stability(self, resamples: int = 100, seed: int = 0, progress: Progress = silent) -> Stability:
        """Draw the profiled samples again (bootstrap), and look for the best policy of each draw, from this one.

        Whole samples are drawn, a sequence with all its positions being one, from the 16 (of more than 2,048
        candidates, 8) blocks that a Taylor model keeps sums of, so that a standard deviation is itself within about
        20 %. The best policy of a draw is proved up to 12 groups, and beyond what local searches find; no clock is
        asked, so that the seed decides the result. Samples cut from one document hang together, and are drawn together
        where `profile` was told how many (``cluster``).

        Args:
            resamples: How often samples are drawn again.
            seed: Decides draws and searches.
            progress: Called with the fraction done and a message.

        Returns:
            For each group how often it keeps its width, the spread of the predicted loss, and how often the policy is
            within 1 % of the best.

        Raises:
            ValueError: If resamples is not positive, the model was made from fewer than two samples, or the budget
                bounds the loss.
        """
        assert self.preparation is not None
        additive = self.objective == "additive" or "pairs" in self.details
        return self.preparation.stability(self.policy, additive, resamples, seed, progress)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "policy": json.loads(self.policy.to_json()),
            "bits": self.policy.bits(),
            "predicted_loss": self.predicted_loss,
            "parts": {
                "gradient": self.prediction.gradient,
                "within": self.prediction.within,
                "between": self.prediction.between,
            },
            "prediction_error": self.prediction_error,
            "objective": self.objective,
            "minimised": self.minimised,
            "value": self.value,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "absolute_gap": self.absolute_gap,
            "status": self.status.name,
            "advice": self.status.advice,
            "costs": dict(self.costs),
            "limits": dict(self.limits),
            "prices": dict(self.prices),
            "seconds": dict(self.seconds),
            "nodes": self.nodes,
            "additive_bits": None if self.additive_policy is None else self.additive_policy.bits(),
            "additive_loss": self.additive_loss,
            "details": dict(self.details),
        }

    def __repr__(self) -> str:
        """Say the bits, the loss, and how far from the best it can be."""
        return (
            f"Allocation({self.costs.get('average_bits', float('nan')):.3f} average bits, predicted loss "
            f"{self.predicted_loss:.4g}, gap {self.gap:.2%}, {self.status.name})"
        )
