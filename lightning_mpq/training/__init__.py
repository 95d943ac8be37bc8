"""Fine-tuning as phases of a Lightning fit: limits, optimizers, averages and random states, and who acts when."""

from .averaging import AveragingCallbacks
from .phase import FinetunePhase
from .publishing import finetuned_row, publish

__all__ = ["AveragingCallbacks", "FinetunePhase", "finetuned_row", "publish"]
