"""Where policies are tried on a model: packed, repaired, measured and taken back; the float model is measured once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..curvature.estimators.base import Loss
from ..network.calibration import Calibration
from ..network.loss_change import LossChange, Losses
from ..policy import BitPolicy
from ..repair.repair import Step
from .quantize import Quantizer, RoundingOrder

Repaired = tuple[Step, ...]


class PolicyEvaluator:
    """Measures what policies do to the loss of a model, for as long as its float weights stay what they are.

    The float model is measured when this object is made; losses of policies are measured when they are first asked
    for, and kept.

    Attributes:
        quantizer: Packs and repairs the model.
        change: Measures by how much the loss differs from that of the float model.
    """

    def __init__(self, quantizer: Quantizer, loss: Loss) -> None:
        """Measure the float model.

        Args:
            quantizer: Packs and repairs the model, which is a float one now.
            loss: What is measured.
        """
        self.quantizer = quantizer
        self.change = LossChange(quantizer.calibration, loss)
        self._losses: dict[tuple[BitPolicy, RoundingOrder, Repaired], Losses] = {}

    @property
    def calibration(self) -> Calibration:
        """The model and its batches, with what its outputs mean."""
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

    def losses_now(self, policy: BitPolicy, order: RoundingOrder, repaired: Repaired) -> Losses:
        """Return the losses of the model as it is now, which is packed and repaired as the arguments say."""
        key = (policy, order, repaired)
        if key not in self._losses:
            self._losses[key] = self.change.measure_each()
        return self._losses[key]

    def losses(self, policy: BitPolicy, order: RoundingOrder, stages: Sequence[Repaired]) -> list[Losses]:
        """Return the losses that the float model has under a policy, at some stages of repair in their order."""
        missing = [stage for stage in stages if (policy, order, stage) not in self._losses]
        if missing:
            with self.quantizer.packed(policy, order):
                for stage in self.repair_in_stages():
                    if stage in missing:
                        self.losses_now(policy, order, stage)
                    if stage == missing[-1]:
                        break
        return [self._losses[policy, order, stage] for stage in stages]

    def settle(self, policy: BitPolicy) -> None:
        """Measure a policy rounded in either order, where it is rounded in sequence, and decide for the better one."""
        if self.quantizer.order(policy) == "sequential":
            losses = self.losses(policy, "sequential", self.stages[-1:])[0]
            if self.is_worse(policy, losses):
                self.quantizer.keep_independent(policy)

    def is_worse(self, policy: BitPolicy, in_sequence: Losses) -> bool:
        """Tell whether a repaired policy does worse rounded in sequence than as its candidates were rounded."""
        return in_sequence.mean() > self.losses(policy, "independent", self.stages[-1:])[0].mean()
