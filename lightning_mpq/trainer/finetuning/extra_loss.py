"""What fine-tuning adds to the loss of a module's own training step: distillation and damping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor

from ...finetune import (
    DistillationLoss,
    FakeQuantization,
    Teacher,
    damping_loss,
    with_extra_loss,
)
from ...options import FinetuneOptions


class ExtraLoss:
    """Adds losses to what ``training_step`` returns, by standing in its place on the module.

    Attributes:
        options: Weights of the losses.
    """

    def __init__(self, options: FinetuneOptions) -> None:
        self.options = options
        self._teacher: Teacher | None = None
        self._teacher_state: Mapping[str, Tensor] | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is added."""
        return self.options.distill > 0 or self.options.damping > 0

    def load(self, teacher: Mapping[str, Tensor] | None) -> None:
        """Take the float weights that a checkpoint kept, for the teacher to come."""
        self._teacher_state = teacher

    def watch(self, module: L.LightningModule) -> None:
        """Keep the float model that is to teach; called before fake quantization, with any weights if some are loaded.

        Raises:
            ValueError: If there is no such submodule, or it cannot be copied.
        """
        if not self.options.distill:
            return
        self._teacher = Teacher(self.student(module), self.options.teacher_dtype)
        if self._teacher_state is not None:
            self._teacher.load_state_dict(dict(self._teacher_state))
            self._teacher_state = None

    def start(self, module: L.LightningModule, handle: FakeQuantization) -> None:
        """Stand in front of the module's training step."""
        if not self.wanted:
            return
        own, options = module.training_step, self.options
        distillation = None
        if self._teacher is not None:
            distillation = DistillationLoss(
                self.student(module), self._teacher, weight=options.distill, temperature=options.temperature
            )

        def training_step(*args: Any, **named: Any) -> Any:
            if distillation is None:
                result = own(*args, **named)
            else:
                with distillation.capture():
                    result = own(*args, **named)
                result = with_extra_loss(result, distillation.loss(args[0] if args else named.get("batch")))
            return with_extra_loss(result, options.damping * damping_loss(handle)) if options.damping else result

        module.__dict__["training_step"] = training_step

    @contextmanager
    def paused(self, module: L.LightningModule) -> Iterator[None]:
        """Let the module's own training step answer inside of a ``with`` block."""
        ours = module.__dict__.pop("training_step", None) if self.wanted else None
        try:
            yield
        finally:
            if ours is not None:
                module.__dict__["training_step"] = ours

    def stop(self, module: L.LightningModule) -> None:
        """Step aside; what a checkpoint needs is kept."""
        if self.wanted:
            module.__dict__.pop("training_step", None)
        if self._teacher is not None:
            self._teacher_state, self._teacher = self._teacher.state_dict(), None

    def state(self) -> dict[str, Tensor] | None:
        """Return the float weights as they are kept; None if nobody teaches."""
        kept = self._teacher_state if self._teacher is None else self._teacher.state_dict()
        return None if kept is None else {name: value.clone() for name, value in kept.items()}

    def student(self, module: L.LightningModule) -> Any:
        """Return the part of a module that is taught.

        Raises:
            ValueError: If there is no such submodule.
        """
        try:
            return module.get_submodule(self.options.distill_from or "")
        except AttributeError as error:
            raise ValueError(
                f"distill_from={self.options.distill_from!r} names no submodule of {type(module).__name__}."
            ) from error
