"""The change of the loss as it really is, on some batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from math import inf, isfinite, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..tools.distributed import errors_shared, gather
from ..tools.process_wide import quiet
from .batches import batch_weight, to_device
from .calibration import Calibration
from .evaluator import Evaluator, SkippedBatchError
from .forward import device_of
from .guessed_likelihood import guess_likelihood
from .isolation import isolated
from .likelihood import Likelihood

BEYOND_CHANCE = 2.0
"""Standard errors of a paired difference, above which it is more than the chance of these samples."""


class Losses(NamedTuple):
    """Losses of one model on this process's batches.

    Attributes:
        values: [units], float64; a unit is a sample, or a batch for the task loss.
        weights: [units], samples that each value is of.
    """

    values: Tensor
    weights: Tensor

    def mean(self) -> float:
        """Return the mean over the samples of all processes."""
        parts = gather((float((self.values * self.weights).sum()), float(self.weights.sum())))
        return sum(own for own, _ in parts) / max(sum(count for _, count in parts), 1)

    def first(self, units: int | None) -> Losses:
        """Return the same of this process's first units; of all for None."""
        return Losses(self.values[:units], self.weights[:units])

    def minus(self, other: Losses) -> tuple[float, float]:
        """Return the mean of the paired differences over all processes, and its standard error.

        It is that of a mean of so many units, each with its weight; infinite where there is but one.
        """
        differences = self._replace(values=self.values - other.values)
        mean = differences.mean()
        spread = float((self.weights * (differences.values - mean)).square().sum())
        parts = gather((spread, float(self.weights.sum()), int((self.weights > 0).sum())))
        squares, samples, units = (sum(part) for part in zip(*parts, strict=True))
        return mean, sqrt(squares * units / (units - 1)) / samples if units > 1 else inf

    def above(self, other: Losses) -> tuple[float, float | None]:
        """Return the same for a report: no error where there is but one unit."""
        mean, error = self.minus(other)
        return mean, error if isfinite(error) else None


class LossChange:
    """Measures by how much a model's loss differs from what it was when this object was made.

    The divergence is ``KL(p_float || p_now)`` in nats per sample; the task loss is the mean of ``loss_fn`` over
    the batches, each weighted by its samples. Where torch.distributed is in use, every process measures its own
    batches, and all get the loss over the batches of all.

    Attributes:
        calibration: The model and the batches that it is measured on.
        batches: How many batches of this process these are.
        reference: Task loss of the float model; 0 for the divergence.
        likelihood: What the outputs mean; None for the task loss where nobody said it.
    """

    def __init__(self, calibration: Calibration, loss: str) -> None:
        """Run the float model once and keep what later measurements compare with.

        Args:
            calibration: The float model and its batches, at least one; later calls measure it as it is then. Where
                nobody says what the outputs mean, it is guessed from the first batch.
            loss: "divergence" or "task".
        """
        self.calibration = calibration
        self.batches = sum(1 for _ in calibration.filled())
        self.likelihood = calibration.likelihood
        self._evaluator = Evaluator(calibration)
        self._outputs: list[Tensor] = []
        self._task_losses = self._each(self._task_loss) if loss == "task" else None
        self.reference = 0.0
        if self._task_losses is not None:
            self.reference = self._task_losses.mean()
        else:
            self._each(self._keep_outputs)

    def on(self, model: nn.Module) -> LossChange:
        """Return the same for another model, such as a copy, whose loss is compared with that of the float model."""
        other = copy.copy(self)
        other.calibration = self.calibration.on(model)
        other._evaluator = Evaluator(other.calibration)
        return other

    def measure(self, first: int | None = None) -> float:
        """Return the change of the loss of the model as it is now, in evaluation mode.

        Args:
            first: On how many of this process's batches, from the first; on all for None.
        """
        return self.measure_each(first).mean()

    def measure_each(self, first: int | None = None) -> Losses:
        """Return the change as `measure` does, sample by sample, or batch by batch for the task loss."""
        if self._task_losses is None:
            return self._each(self._divergence, first)
        losses = self._each(self._task_loss, first)
        return losses._replace(values=losses.values - self._task_losses.first(first).mean())

    def _each(self, measure: Callable[[int, Any], tuple[Tensor, int]], first: int | None = None) -> Losses:
        """Run the model over this process's batches; ``measure`` gives values and the samples that each is of."""
        values, samples = [], []

        def add(number: int, batch: Any) -> None:
            self._evaluator.batch_number = number
            found, count = measure(number - 1, batch)
            values.append(found.double().cpu().flatten())
            samples.append(torch.full_like(values[-1], count))

        with isolated(self.calibration.model), torch.no_grad():
            self.calibration.first(first).each(add, "measuring the loss")
        return Losses(torch.cat(values), torch.cat(samples))

    def _task_loss(self, number: int, batch: Any) -> tuple[Tensor, int]:
        try:
            return self._evaluator.loss(batch), batch_weight(batch)
        except SkippedBatchError:  # it counts as nothing, as in training
            return torch.zeros(()), 0

    def _keep_outputs(self, number: int, batch: Any) -> tuple[Tensor, int]:
        outputs = self._evaluator.outputs(batch)
        if self.likelihood is None:
            with quiet():  # the profile on the same batches has said already what was guessed
                self.likelihood = guess_likelihood(outputs, batch, self._evaluator.output_name)
        self._outputs.append(outputs)
        return torch.zeros(len(outputs)), 1

    def _divergence(self, number: int, batch: Any) -> tuple[Tensor, int]:
        assert self.likelihood is not None
        now = self._evaluator.outputs(batch)
        return self.likelihood.divergence(self._outputs[number], now, batch), 1


def divergence_if_known(calibration: Calibration) -> LossChange | None:
    """Return what measures the divergence from the float model; None if nobody knows what its outputs mean."""
    with errors_shared():
        likelihood = calibration.likelihood or _guessed(calibration)
    if not all(gather(likelihood is not None)):
        return None
    return LossChange(replace(calibration, likelihood=likelihood), "divergence")


def _guessed(calibration: Calibration) -> Likelihood | None:
    batch = to_device(next(calibration.filled()), device_of(calibration.model))
    with isolated(calibration.model), torch.no_grad(), quiet():
        outputs, name = calibration.named_outputs(batch)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.dim() == 0:
            return None
        try:
            return guess_likelihood(outputs, batch, name)
        except ValueError:
            return None
