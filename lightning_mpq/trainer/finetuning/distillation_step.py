"""Distillation within a fit: the divergence from the float model, added to what ``training_step`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from torch import Tensor

from ...finetune import DistillationLoss, Teacher, with_extra_loss
from ...options import FinetuneOptions
from ...tools.clean_up import afterwards


class DistillationStep:
    """Adds the distillation loss to what ``training_step`` returns, by standing in its place on the module.

    Attributes:
        options: Weight and temperature of the loss.
    """

    def __init__(self, options: FinetuneOptions) -> None:
        self.options = options
        self._teacher: Teacher | None = None
        self._teacher_state: Mapping[str, Tensor] | None = None

    @property
    def wanted(self) -> bool:
        """Whether anything is added."""
        return self.options.distill > 0

    def load(self, teacher: Mapping[str, Tensor] | None) -> None:
        """Take the float weights that a checkpoint kept, for the teacher to come."""
        self._teacher_state = teacher

    def watch(self, module: L.LightningModule) -> None:
        """Keep the float model that is to teach; called before fake quantization, with any weights if some are loaded.

        Raises:
            ValueError: If there is no such submodule, or it cannot be copied.
        """
        if not self.wanted:
            return
        self._teacher = Teacher(self.student(module), self.options.teacher_dtype)
        if self._teacher_state is not None:
            self._teacher.load_state_dict(dict(self._teacher_state))
            self._teacher_state = None

    def start(self, module: L.LightningModule) -> None:
        """Stand in front of the module's training step."""
        if self._teacher is None:
            return
        own, options = module.training_step, self.options
        distillation = DistillationLoss(
            self.student(module), self._teacher, weight=options.distill, temperature=options.temperature
        )

        def training_step(*args: Any, **named: Any) -> Any:
            with distillation.capture():
                result = own(*args, **named)
            if result is None:  # skips the batch, perhaps before the student was called
                return None
            return with_extra_loss(result, distillation.loss(args[0] if args else named.get("batch")))

        module.__dict__["training_step"] = training_step

    @contextmanager
    def paused(self, module: L.LightningModule) -> Iterator[None]:
        """Let the module's own training step answer inside of a ``with`` block."""
        ours = {name: step for name, step in module.__dict__.items() if name == "training_step" and self.wanted}
        with afterwards(lambda: module.__dict__.update(ours)):
            for name in ours:
                del module.__dict__[name]
            yield

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
