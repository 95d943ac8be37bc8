"""How a quantized model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from ..tools.checks import check_one_of, is_number, shown


@dataclass(frozen=True)
class FinetuneOptions:
    """How a quantized model is trained on.

    Attributes:
        epochs: How many; 0 for no fine-tuning.
        steps: Optimizer steps instead of epochs.
        learning_rate: Factor on the learning rates of ``configure_optimizers``, or of ``optimizers``.
        schedule: "cosine" decays to zero over the fine-tuning, "constant" does not. The module's own schedulers are
            paused.
        learn_scales: Whether scales learn with the weights (LSQ); otherwise rounding alone is straight-through.
        learn_ranges: Whether ranges of quantized inputs learn likewise, from the calibrated ones; otherwise they stay.
        scale_learning_rate: Factor on the learning rate of scales and ranges, on top of the other.
        margin: How far beyond the outermost levels gradients pass, in steps (see `fake_quantize`).
        batchnorm: "average" statistics on as in training, or keep them "frozen" as they are after quantization.
        distill: Weight of the divergence from the float model's outputs, which is added to the loss of
            ``training_step``; 0 for none.
        temperature: Of the distillation.
        distill_from: Name of the submodule whose outputs are compared; by default the module itself.
        teacher_dtype: Type in which the float weights are kept for it: "float32", "bfloat16" or "float16".
        optimizers: ``module -> what configure_optimizers may return``, to be used instead of it.
    """

    epochs: int = 0
    steps: int | None = None
    learning_rate: float = 0.03
    schedule: Literal["cosine", "constant"] = "cosine"
    learn_scales: bool = True
    learn_ranges: bool = True
    scale_learning_rate: float = 1.0
    margin: float = 0.5
    batchnorm: Literal["average", "frozen"] = "average"
    distill: float = 0.0
    temperature: float = 1.0
    distill_from: str | None = None
    teacher_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    optimizers: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, value, least in (("epochs", self.epochs, 0), ("steps", self.steps, 1)):
            given = value is not None or name == "epochs"
            if given and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} of fine-tuning must be an integer of at least {least}, got {shown(value)}.")
        if self.epochs and self.steps is not None:
            raise ValueError("Give epochs or steps of fine-tuning, not both.")
        for name in ("learn_scales", "learn_ranges"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {shown(getattr(self, name))}.")
        for name in ("learning_rate", "scale_learning_rate", "temperature"):
            value = getattr(self, name)
            if not is_number(value) or not 0 < value < inf:
                raise ValueError(f"{name} must be positive, got {shown(value)}.")
        for name in ("distill", "margin"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(f"{name} must be 0 or more, got {shown(value)}.")
        check_one_of("schedule", self.schedule, ("cosine", "constant"))
        check_one_of("batchnorm", self.batchnorm, ("average", "frozen"))
        check_one_of("teacher_dtype", self.teacher_dtype, (None, "float32", "bfloat16", "float16"))
