"""Where policies are tried on a model: packed, repaired, measured and taken back; the float model is measured once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..curvature.estimators.base import Loss
from ..network.calibration import Calibration
from ..network.loss_change import BEYOND_CHANCE, LossChange, Losses
from ..policy import BitPolicy
from ..repair.repair import Step
from ..tools.warning import warn
from .quantizer import Quantizer, RoundingOrder

Repaired = tuple[Step, ...]


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
    refused: Repaired

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
        self._known: dict[tuple[BitPolicy, RoundingOrder, Repaired], Measured] = {}

    @property
    def calibration(self) -> Calibration:
        """The model and the batches that weights are fitted to, with what its outputs mean."""
        return replace(self.quantizer.calibration, likelihood=self.change.likelihood)

    @property
    def stages(self) -> list[Repaired]:
        """What is repaired by and by: nothing, the first step, the first two, ..., everything."""
        names = self.quantizer.repair.names
        return [names[:count] for count in range(len(names) + 1)]

    def repair_in_stages(self) -> Iterator[Repaired]:
        """Repair the packed model step by step; yield what is repaired by then, before the first step too."""
        yield ()
        for stage, _ in zip(self.stages[1:], self.quantizer.repair.steps(), strict=True):
            yield stage

    def measured(self, policy: BitPolicy, order: RoundingOrder, stages: Sequence[Repaired]) -> list[Measured]:
        """Return what the float model loses under a policy, at some stages of repair in their order."""
        missing = [stage for stage in stages if (policy, order, stage) not in self._known]
        if missing:
            with self.quantizer.packed(policy, order):
                for stage in self.repair_in_stages():
                    if stage in missing:
                        refused = self.quantizer.repair.refused if stage else ()
                        fitted = None if self._fitted is None else self._fitted.measure()
                        self._known[policy, order, stage] = Measured(self.change.measure_each(), fitted, refused)
                    if stage == missing[-1]:
                        break
        return [self._known[policy, order, stage] for stage in stages]

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
