"""EarlyStopping over the two parts of a fit, whose models are not to be compared with each other."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping


def forget_the_float_record(trainer: L.Trainer) -> None:
    """Let EarlyStopping compare fine-tuned models with each other, not with the float one."""
    callbacks: list[Any] = getattr(trainer, "callbacks", [])
    for callback in callbacks:
        if isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            worst = torch.tensor(torch.inf)
            callback.best_score = worst if callback.monitor_op == torch.lt else -worst
