"""The rows of a report: one model, group, repair, trial or target each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelRow:
    """One model of the comparison.

    Attributes:
        name: "float", "uniform 3 bits", "additive", "chosen" or "fine-tuned".
        average_bits: Bits stored per quantized weight, scales and zero points included; of how many of the model's
            parameters, ``Report.coverage`` says.
        stored_bytes: Bytes of all parameters and buffers, packed weights as packed.
        predicted_loss: Change of the loss that the Taylor model predicts; None if its schemes are no candidates.
        measured_loss: Change measured as deployed, with all repair, on the calibration samples that are held out from
            rounding and repair (``Report.held_out``), or on all if none are. The model that is kept is fitted to them
            too, once they have judged; what this says of it was measured before.
        measured_frozen: The same before any repair, with the codes that were profiled.
        metrics: What the module logged in validation.
        fitted_loss: As ``measured_loss``, on as many samples of those that rounding and repair were fitted to; None if
            none are held out.
        above_chosen: By how much ``measured_loss`` exceeds that of the chosen policy; negative if it is better.
        above_chosen_error: The standard error of that, of the differences sample by sample.
        intervals: Metric to its 95 % interval over validation batches drawn again, where it is a mean over them and
            there are 8 or more. Models are validated on the same batches, so that differences are surer than that.
        clipped: Layer, or operand of a sum or average, to the part of its input values on held-out samples that lies
            beyond its range; nothing where no input has a range, or none are held out.
    """

    name: str
    average_bits: float
    stored_bytes: int
    predicted_loss: float | None
    measured_loss: float | None
    measured_frozen: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    fitted_loss: float | None = None
    above_chosen: float | None = None
    above_chosen_error: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    clipped: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelRow:
        """Return what a row of `Report.to_dict` was made of."""
        intervals = {name: (low, high) for name, (low, high) in values.get("intervals", {}).items()}
        return cls(**{**values, "intervals": intervals})


@dataclass(frozen=True)
class GroupRow:
    """One group of the chosen policy.

    Attributes:
        group: Name of the group.
        layers: Names of its layers.
        bits: Bits per weight.
        scheme: Short name of its scheme.
        weights: Number of weights.
        stored_bytes: Bytes of its codes, scales and zero points.
        predicted_share: Its part of the policy's predicted loss: its own terms and half of each pair's.
        predicted_alone: Loss predicted if it alone were quantized.
        measured_alone: Loss measured on the first of the held-out batches when it alone is quantized.
    """

    group: str
    layers: tuple[str, ...]
    bits: int
    scheme: str
    weights: int
    stored_bytes: int
    predicted_share: float
    predicted_alone: float
    measured_alone: float


@dataclass(frozen=True)
class RepairRow:
    """The chosen policy after a step of repair.

    Attributes:
        rounding: "independent", as it was profiled, or "sequential".
        repaired: What was repaired by then, in order: "biases", "batchnorm".
        measured_loss: Change of the loss on the calibration samples that are held out, or on all if none are.
        fitted_loss: The same on samples that rounding and repair were fitted to; None if none are held out.
        refused: Which of the repairs were taken back, since they raise the loss on what is held out.
    """

    rounding: str
    repaired: tuple[str, ...]
    measured_loss: float
    fitted_loss: float | None = None
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialRow:
    """A policy that was measured before one was chosen.

    Attributes:
        round: 0 for policies of the Taylor model around the float weights, 1 for the first one around quantized ones.
        policy: Where the policy comes from: "solved", "additive", "uniform", "expanded again".
        bits: Group to bits.
        predicted_loss: Change of the loss from the float model that was predicted.
        measured_loss: The same as measured on what is held out, with the codes that were profiled, repaired.
        kept: Whether this policy was chosen.
        above_kept: By how much its measured loss exceeds that of the policy that was chosen.
        above_kept_error: The standard error of that, of the differences sample by sample.
        fitted_loss: As ``measured_loss``, on samples that weights were fitted to; None if none are held out.
    """

    round: int
    policy: str
    bits: Mapping[str, int]
    predicted_loss: float
    measured_loss: float
    kept: bool = False
    above_kept: float | None = None
    above_kept_error: float | None = None
    fitted_loss: float | None = None


@dataclass(frozen=True)
class PairsRow:
    """What the terms between groups contribute to the predicted loss of the chosen policy.

    Attributes:
        measured: Their sum as the profile measured it; negative if errors cancel each other.
        standard_error: Its standard error; None if unknown.
        used: Their sum in the model that was solved, after shrinkage.
        total: The whole predicted loss.
    """

    measured: float
    standard_error: float | None
    used: float
    total: float

    @property
    def share(self) -> float | None:
        """The measured sum over the whole predicted loss; None of a loss of zero."""
        return self.measured / abs(self.total) if self.total else None

    @property
    def share_error(self) -> float | None:
        """The standard error of the share; None if unknown."""
        return self.standard_error / abs(self.total) if self.total and self.standard_error is not None else None

    @property
    def significant(self) -> bool | None:
        """Whether the measured sum is more than two standard errors from zero; None if nobody knows."""
        return None if self.standard_error is None else abs(self.measured) > 2 * self.standard_error


@dataclass(frozen=True)
class FinetuningRow:
    """What fine-tuning did to the task loss on the calibration batches, in evaluation mode.

    Attributes:
        loss_before: Of the rounded and repaired model that it began with.
        loss_after: Of the packed model that it ended with.
    """

    loss_before: float
    loss_after: float


@dataclass(frozen=True)
class TargetRow:
    """Whether a runtime can hold the chosen policy.

    Attributes:
        target: Its short name.
        holds: Whether it can.
        obstacles: How many layers, or sets of layers that it ties, keep it from that.
        reasons: What keeps it from that, of the first few.
        stored_bytes: Codes, scales and zero points as they lie in its file; None if it cannot hold them.
    """

    target: str
    holds: bool
    obstacles: int = 0
    reasons: tuple[str, ...] = ()
    stored_bytes: int | None = None
