"""What each validation batch contributes to the metrics that a module logs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import lightning as L
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from ..report.metric_values import Batch
from ..tools.process_wide import quiet


class BatchMetrics(L.Callback):
    """Notes of each metric that is logged over an epoch its mean over every batch.

    Attributes:
        batches: Metric, by the name that ``trainer.validate`` returns, to its batches.
    """

    def __init__(self) -> None:
        """Note nothing yet."""
        self.batches: dict[str, list[Batch]] = {}
        self._sums: dict[str, tuple[float, float]] = {}

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *index: int
    ) -> None:
        """Note what the batch has added to sums that Lightning keeps of tensors, or what a metric object said of it."""
        collected = trainer._results
        if collected is None:
            return
        for key, logged in collected.valid_items():
            if not logged.meta.on_epoch:
                continue
            name = collected._forked_name(logged, on_step=False)[1]
            if not logged.is_tensor:
                said = logged._forward_cache
                if isinstance(said, Tensor) and said.numel() == 1:
                    self.batches.setdefault(name, []).append((float(said), _samples(batch)))
            elif logged.meta.is_mean_reduction:
                before = self._sums.get(key, (0.0, 0.0))
                self._sums[key] = float(logged.value), float(logged.cumulated_batch_size)
                total, weight = (now - then for now, then in zip(self._sums[key], before, strict=True))
                if weight > 0:
                    self.batches.setdefault(name, []).append((total / weight, weight))


def _samples(batch: Any) -> float:
    """Return the samples of a batch, 1 where nobody can tell: then all batches weigh the same."""
    with suppress(Exception), quiet():  # it looks at whatever a batch is made of
        return float(extract_batch_size(batch))
    return 1.0
