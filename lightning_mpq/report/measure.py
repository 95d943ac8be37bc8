"""The change of the loss as it really is, on the batches that the Taylor model was measured on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import sample_count, to_device
from ..calling import ForwardFn, device_of
from ..curvature.evaluator import Evaluator, LossFn
from ..curvature.isolation import isolated
from ..curvature.likelihood import Likelihood, guess_likelihood
from ..distributed import errors_shared, gather


class LossChange:
    """Measures by how much a model's loss differs from what it was when this object was made.

    The divergence is ``KL(p_float || p_now)`` in nats per sample; the task loss is the mean of ``loss_fn`` over
    the batches, each weighted by its samples. Where torch.distributed is in use, every process measures its own
    batches, and all get the loss over the batches of all.

    Attributes:
        reference: Task loss of the float model; 0 for the divergence.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        loss: str,
        *,
        likelihood: Likelihood | None = None,
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
    ) -> None:
        """Run the float model once and keep what later measurements compare with.

        Args:
            model: The float model; later calls measure it as it is then.
            batches: Calibration batches, at least one.
            loss: "divergence" or "task".
            likelihood: What the outputs mean; guessed from the first batch for None.
            forward_fn: ``(model, batch) -> outputs``.
            loss_fn: ``(model, batch) -> scalar``.
        """
        self._model, self._batches, self._loss = model, batches, loss
        self._likelihood = likelihood
        self._evaluator = Evaluator(model, forward_fn, loss_fn)
        self._outputs: list[Tensor] = []
        self.reference = 0.0
        if loss == "task":
            self.reference = self._mean(self._task_loss)
        else:
            self._mean(self._keep_outputs)

    def measure(self) -> float:
        """Return the change of the loss of the model as it is now, in evaluation mode."""
        if self._loss == "task":
            return self._mean(self._task_loss) - self.reference
        return self._mean(self._divergence)

    def _mean(self, total_of: Any) -> float:
        total, samples = 0.0, 0
        with errors_shared(), isolated(self._model), torch.no_grad():
            for number, batch in enumerate(self._batches):
                self._evaluator.batch_number = number + 1
                value, count = total_of(number, to_device(batch, device_of(self._model)))
                total, samples = total + value, samples + count
        parts = gather((total, samples))
        return sum(own for own, _ in parts) / max(sum(count for _, count in parts), 1)

    def _task_loss(self, number: int, batch: Any) -> tuple[float, int]:
        count = sample_count(batch) or 1
        return float(self._evaluator.loss(batch)) * count, count

    def _keep_outputs(self, number: int, batch: Any) -> tuple[float, int]:
        outputs = self._evaluator.outputs(batch)
        if self._likelihood is None:
            with warnings.catch_warnings():  # the profile on the same batches has said already what was guessed
                warnings.simplefilter("ignore")
                self._likelihood = guess_likelihood(outputs, batch)
        self._outputs.append(outputs)
        return 0.0, len(outputs)

    def _divergence(self, number: int, batch: Any) -> tuple[float, int]:
        assert self._likelihood is not None
        now = self._evaluator.outputs(batch)
        return float(self._likelihood.divergence(self._outputs[number], now, batch).sum()), len(now)
