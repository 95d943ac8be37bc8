"""Where plans are tried on a model: packed, repaired, measured and taken back; the float model is measured once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from ..network.evaluator import LossFn
from ..network.forward import ForwardFn
from ..network.likelihood import Likelihood
from ..options import RepairOptions
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..repair.repair import Repair, final_codes, rounds_in_sequence
from ..rounding.rounded_weights import RoundedWeights
from .loss_change import LossChange, Losses
from .quantize import packed_unless_it_fails, temporarily_packed

Rounding = Literal["by float inputs", "in sequence"]
Repaired = tuple[str, ...]


@dataclass
class Workbench:
    """A model on its calibration batches, for as long as its float weights stay what they are.

    What the float model puts out, what repair has to meet, codes rounded in sequence and the losses of plans are found
    out when they are first asked for, and kept.

    Attributes:
        model: The float model; back as it was after every call, unless it is packed for good.
        batches: Calibration batches.
        layers: Layers that may be quantized: their biases are corrected.
        rounded: The rounded weights that were profiled; None if all are rounded to nearest.
        loss: What is measured: "divergence" or "task".
        options: What is repaired behind quantized weights.
        likelihood: What the outputs mean; None to guess.
        forward_fn: ``(model, batch) -> outputs``.
        loss_fn: ``(model, batch) -> scalar``.
    """

    model: nn.Module
    batches: Sequence[Any]
    layers: Sequence[str]
    rounded: RoundedWeights | None = None
    loss: str = "divergence"
    options: RepairOptions = field(default_factory=RepairOptions)
    likelihood: Likelihood | None = None
    forward_fn: ForwardFn | None = None
    loss_fn: LossFn | None = None
    _codes: dict[tuple[str, Rounding], dict[str, QuantizedRows]] = field(default_factory=dict, init=False, repr=False)
    _losses: dict[tuple[str, Rounding, Repaired], Losses] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def change(self) -> LossChange:
        """Measures by how much the loss differs from that of the float model; first asked for while it is one."""
        return LossChange(
            self.model,
            self.batches,
            self.loss,
            likelihood=self.likelihood,
            forward_fn=self.forward_fn,
            loss_fn=self.loss_fn,
        )

    @cached_property
    def repair(self) -> Repair:
        """Brings a quantized model in line with the float one; first asked for while it is one."""
        return Repair(self.model, self.batches, self.layers, self.options, self.forward_fn)

    def rounding(self, policy: BitPolicy) -> Rounding:
        """Return how the codes to pack are rounded."""
        return "in sequence" if rounds_in_sequence(policy, self.options) else "by float inputs"

    def codes(self, policy: BitPolicy, rounding: Rounding | None = None) -> Mapping[str, QuantizedRows]:
        """Return codes by layer, by default those to pack; none where a weight is rounded by itself.

        Args:
            policy: The plan.
            rounding: "by float inputs", as codes are profiled, or "in sequence".
        """
        rounding = rounding or self.rounding(policy)
        key = (policy.to_json(), rounding)
        if key not in self._codes:
            options = replace(self.options, sequential=rounding == "in sequence")
            self._codes[key] = final_codes(self.model, self.batches, policy, options, self.rounded, self.forward_fn)
        return self._codes[key]

    @contextmanager
    def packed(self, policy: BitPolicy, rounding: Rounding | None = None, *, keep: bool = False) -> Iterator[None]:
        """Pack the layers of a plan for the time of a ``with`` block, not yet repaired, to be measured.

        Args:
            policy: The plan.
            rounding: As in `codes`.
            keep: Whether they stay packed if the block ends without an error.
        """
        codes, _, _ = self.codes(policy, rounding), self.repair, self.change  # all three need the float model
        with (packed_unless_it_fails if keep else temporarily_packed)(self.model, policy, codes):
            yield

    def pack(self, policy: BitPolicy) -> None:
        """Pack the layers of a plan for good and repair the model; on an error it is left as it was."""
        codes, repair = self.codes(policy), self.repair
        with packed_unless_it_fails(self.model, policy, codes):
            repair.apply()

    @property
    def stages(self) -> list[Repaired]:
        """What is repaired by and by: nothing, the first step, the first two, ..., everything."""
        names = self.repair.names
        return [names[:count] for count in range(len(names) + 1)]

    def repair_in_stages(self) -> Iterator[Repaired]:
        """Repair the packed model step by step; yield what is repaired by then, before the first step too."""
        yield ()
        for stage, _ in zip(self.stages[1:], self.repair.steps(), strict=True):
            yield stage

    def losses_now(self, policy: BitPolicy, rounding: Rounding, repaired: Repaired) -> Losses:
        """Return the losses of the model as it is now, which is packed and repaired as the arguments say."""
        key = (policy.to_json(), rounding, repaired)
        if key not in self._losses:
            self._losses[key] = self.change.measure_each()
        return self._losses[key]

    def losses(self, policy: BitPolicy, rounding: Rounding, stages: Sequence[Repaired]) -> list[Losses]:
        """Return the losses that the float model has under a plan, at some stages of repair in their order."""
        plan = policy.to_json()
        missing = [stage for stage in stages if (plan, rounding, stage) not in self._losses]
        if missing:
            with self.packed(policy, rounding):
                for stage in self.repair_in_stages():
                    if stage in missing:
                        self.losses_now(policy, rounding, stage)
                    if stage == missing[-1]:
                        break
        return [self._losses[plan, rounding, stage] for stage in stages]
