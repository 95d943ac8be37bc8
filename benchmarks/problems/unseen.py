"""How a model does on samples that nothing was fitted to or chosen by."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from .subjects import Subject


class Unseen:
    """Measures a model as it is on the unseen samples.

    Attributes:
        processor: Seconds of processor time that this has taken, and seconds of wall time.
    """

    def __init__(self, subject: Subject) -> None:
        """Keep what the float model says."""
        self._subject = subject
        self._reference = self._outputs(subject.model)
        self.processor, self.seconds = 0.0, 0.0

    def __call__(self) -> dict[str, float]:
        """Return the loss, which is the divergence from the float model per sample, and the figures of quality."""
        return self.of(self._subject.model)

    def of(self, model: nn.Module) -> dict[str, float]:
        """Return the same of another model that takes the same batches."""
        began, processor = time.perf_counter(), time.process_time()
        found, batches = self._outputs(model), self._subject.unseen
        losses = [
            self._subject.likelihood.divergence(one, two, batch)
            for one, two, batch in zip(self._reference, found, batches, strict=True)
        ]
        quality = self._subject.quality(self._reference, found, batches)
        self.seconds += time.perf_counter() - began
        self.processor += time.process_time() - processor
        return {"unseen_loss": float(torch.cat(losses).double().mean()), **quality}

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        model.eval()
        return [model(**batch) if isinstance(batch, dict) else model(batch) for batch in self._subject.unseen]
