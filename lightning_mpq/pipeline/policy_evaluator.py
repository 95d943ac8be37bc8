"""Where policies are tried on a model: packed, repaired, measured and taken back; the float model is measured once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..curvature.estimators.base import Loss
from ..modules import set_memory
from ..network.calibration import Calibration
from ..network.loss_change import BEYOND_CHANCE, LossChange, Losses
from ..policy import BitPolicy
from ..repair.repair import Repaired, Step
from ..tools.warning import warn
from .quantizer import Quantizer, RoundingOrder

Stage = tuple[Step, ...]
"""What is repaired by then."""


class Measured(NamedTuple):
    """The loss of a model under a policy.

    Attributes:
        losses: On the samples that judge: held out from rounding and repair, if anything is.
        fitted: Mean loss on as many batches of those that codes and repairs were fitted to; None if nothing is held
            out.
        refused: Repairs that were taken back, since they do harm on the samples that judge.
    """

    losses: Losses
    fitted: float | None
    refused: Stage

    def mean(self) -> float:
        """Return the mean loss on the samples that judge."""
        return self.losses.mean()


class PolicyEvaluator:
    """Measures what policies do to the loss of a model, for as long as its float weights stay what they are.

    The float model is measured when this object is made; losses of policies are measured when they are first asked
    for, and kept.

    Attributes:
        quantizer: Packs and repairs the model.
        change: Measures by how much the loss differs from that of the float model, on the samples that judge.
    """

    def __init__(self, quantizer: Quantizer, loss: Loss) -> None:
        """Measure the float model.

        Args:
            quantizer: Packs and repairs the model, which is a float one now.
            loss: What is measured.
        """
        self.quantizer = quantizer
        self.change = quantizer.judge or LossChange(quantizer.calibration, loss)
        self._fitted: LossChange | None = None
        if quantizer.judge is not None:
            fitted = replace(quantizer.calibration, likelihood=self.change.likelihood)
            self._fitted = LossChange(fitted.first(self.change.batches), loss)
        self._repaired: dict[tuple[BitPolicy, RoundingOrder], Repaired] = {}
        self._known: dict[tuple[BitPolicy, RoundingOrder, Stage], Measured] = {}

    @property
    def calibration(self) -> Calibration:
        """The model and the batches that weights are fitted to, with what its outputs mean."""
        return replace(self.quantizer.calibration, likelihood=self.change.likelihood)

    @property
    def stages(self) -> list[Stage]:
        """What is repaired by and by: nothing, the first step, the first two, ..., everything."""
        names = self.quantizer.repair.names
        return [names[:count] for count in range(len(names) + 1)]

    def measured(self, policy: BitPolicy, order: RoundingOrder, stages: Sequence[Stage]) -> list[Measured]:
        """Return what the float model loses under a policy, at some stages of repair in their order."""
        missing = [stage for stage in stages if (policy, order, stage) not in self._known]
        if missing:
            with self.quantizer.packed(policy, order):
                set_memory(self.quantizer.model, "fast")  # for the time of some passes, in what a second model takes
                self._measure(policy, order, missing)
        return [self._known[policy, order, stage] for stage in stages]

    def _measure(self, policy: BitPolicy, order: RoundingOrder, missing: Sequence[Stage]) -> None:
        """Repair the packed model as far as it is missing, and measure it on the way."""
        repair, judged = self.quantizer.repair, self.quantizer.judge is not None  # which then judges repair too
        losses = self.change.measure_each() if () in missing else None
        steps = repair.steps(before=losses if judged else None)
        for stage in self.stages:
            if stage:
                next(steps)
                losses = repair.losses if judged else None
            if stage in missing:
                fitted = None if self._fitted is None else self._fitted.measure()
                losses = self.change.measure_each() if losses is None else losses
                self._known[policy, order, stage] = Measured(losses, fitted, repair.refused if stage else ())
            if stage == self.stages[-1]:
                self._repaired[policy, order] = repair.made()
            elif stage == missing[-1]:
                break

    def repair(self, policy: BitPolicy) -> None:
        """Repair the model, packed under a policy as it is to be packed, as it was when it was measured."""
        made = self._repaired.get((policy, self.quantizer.order(policy)))
        if made is None:
            self.quantizer.repair.apply()
        else:
            self.quantizer.repair.make_again(made)

    def as_profiled(self, policy: BitPolicy) -> Measured:
        """Return what is lost as the Taylor model predicts it: with the codes that were profiled, and repaired."""
        return self.measured(policy, "independent", self.stages[-1:])[0]

    def as_packed(self, policy: BitPolicy) -> Measured:
        """Return what is lost as the policy is packed and repaired, by codes rounded in the better order."""
        self.settle(policy)
        return self.measured(policy, self.quantizer.order(policy), self.stages[-1:])[0]

    def settle(self, policy: BitPolicy) -> None:
        """Measure a policy in either order, where it is rounded in sequence, and leave that if it surely loses more.

        Judged by few samples alone, chance would often take the order that fits less of what is there to be fitted.
        """
        if self.quantizer.order(policy) == "sequential":
            in_sequence = self.measured(policy, "sequential", self.stages)[-1]
            worse, error = in_sequence.losses.minus(self.as_profiled(policy).losses)
            if worse > BEYOND_CHANCE * error:
                self.quantizer.keep_independent(policy)

    def warn_if_independent(self, policy: BitPolicy) -> None:
        """Say so where a policy was to be rounded in sequence, and was measured to be surely better without."""
        if self.quantizer.tried_in_sequence(policy) and self.quantizer.order(policy) == "independent":
            warn(
                "Rounded layer after layer, the model was measured to lose more than with every layer rounded by the "
                "float model's inputs; it keeps the latter."
            )
