"""Where a fit that fine-tunes stands: float, due for quantization, training with rounded weights, over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from ...options import FinetuneOptions
from .limits import FitLimits
from .mid_epoch import batches_done, end_epoch, is_counted
from .other_callbacks import AveragingCallbacks
from .random_states import RandomStates
from .refusals import check_epoch
from .schedule import Schedule, schedule_of

PhaseName = Literal["float", "due", "training", "over"]


class FitPhase:
    """Moves a fit from phase to phase: limits of the fit loop, averages that pause, random states of checkpoints.

    Attributes:
        name: "float" until the limits of the float phase are reached; "due" until the model is fake-quantized;
            "training" until it is packed; "over".
        options: How fine-tuning is done, and for how long.
        quantize_at: Epoch before which the float phase ends; None for the end of the fit.
    """

    def __init__(self, options: FinetuneOptions, quantize_at: int | None = None) -> None:
        """Start in the float phase.

        Raises:
            ValueError: If ``quantize_at`` is no epoch.
        """
        check_epoch(quantize_at)
        self.options, self.quantize_at = options, quantize_at
        self.name: PhaseName = "float"
        self._limits: FitLimits | None = None
        self._averaging: AveragingCallbacks | None = None
        self._random = RandomStates()
        self.schedule = Schedule(options.epochs, options.steps)

    @property
    def wanted(self) -> bool:
        """Whether there is any fine-tuning."""
        return bool(self.options.epochs) or self.options.steps is not None or self.quantize_at is not None

    def attach(self, trainer: L.Trainer, averaging: AveragingCallbacks) -> None:
        """Take the user's limits; called in ``setup`` of a fit."""
        self.name, self._random = "float", RandomStates()
        self._limits, self._averaging = FitLimits(trainer, self.quantize_at), averaging
        self.schedule = schedule_of(trainer, self.options.epochs, self.options.steps)

    def detach(self, trainer: L.Trainer) -> None:
        """Give the Trainer back what is its own."""
        if self._averaging is not None:
            self._averaging.resume(trainer)
        if self._limits is not None:
            self._limits.restore()
            self._limits = None

    def load(self, trainer: L.Trainer, checkpoint: Mapping[str, Any], state: Any) -> None:
        """Take the phase from a checkpoint that is about to be loaded into a fit; ``state`` is None in another's."""
        assert self._limits is not None
        assert self._averaging is not None
        if state is not None:
            self.name = state["phase"]
            self._random.load(trainer, state.get("random"))
        if self.name == "training":
            self.schedule = self.schedule.from_here(int(state["first_epoch"]), int(state["first_step"]))
            self._averaging.pause(trainer)
            self._limits.extend(*self.schedule.limits)
        self._limits.open_for(checkpoint)

    def state(self) -> dict[str, Any]:
        """Return where the fit stands as plain values and tensors."""
        limits = self._limits
        over = limits is not None and (limits.reached() or limits.stopped_early())
        state: dict[str, Any] = {"phase": "due" if self.name == "float" and over else self.name}
        state["random"] = self._random.state()
        if self.name == "training":
            state |= {"first_epoch": self.schedule.first_epoch, "first_step": self.schedule.first_step}
        return state

    def note_start(self) -> None:
        """Note where the fit begins; called when the model is on its device."""
        self._random.before_fit()

    def start(self, trainer: L.Trainer) -> None:
        """Judge, once the loop has taken its progress from the checkpoint, where it stands; in ``on_train_start``."""
        assert self._limits is not None
        if trainer.fit_loop.restarted_mid_epoch:
            self._go_on_within_epoch(trainer)
        if self.name == "training":
            self._limits.extend(*self.schedule.limits)
        elif not self.wanted:
            if self._limits.opened:
                self._limits.extend(0, 0, 0, None)
        elif self._limits.opened or self._limits.reached():
            self.name = "due"
            self._limits.keep_open()

    def is_due(self, trainer: L.Trainer) -> bool:
        """Tell at the start of an epoch whether the model is to be quantized now."""
        assert self._limits is not None
        self._random.before_epoch()
        if self.name not in ("float", "due") or not self.wanted:
            return False
        if self.name == "float" and (self._limits.reached() or self._limits.stopped_early()):
            self.name = "due"
        if self.name == "due" and self._limits.time_is_over():
            rank_zero_warn(
                "The Trainer's max_time has passed, so the model is quantized without fine-tuning.",
                category=UserWarning,
            )
            self.name = "float"
            trainer.should_stop = True
            self._limits.extend(0, 0, 0, None)
            return False
        return self.name == "due"

    def finish_float(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let the float phase come to its end: averages are written, and nobody asks to stop any more."""
        assert self._averaging is not None
        trainer.should_stop = False
        self._averaging.finish(trainer, module)

    def before_epoch(self, trainer: L.Trainer) -> None:
        """Do what comes last at the start of an epoch."""
        self._random.before_order(trainer)

    def after_epoch(self, trainer: L.Trainer) -> None:
        """At the end of a float epoch, see to it that the fit goes on to where `is_due` is asked."""
        assert self._limits is not None
        if not self.wanted or self.name not in ("float", "due"):
            return
        if self._limits.reached():
            self.name = "due"
        if not self._limits.time_is_over():
            self._limits.keep_open()

    def begin_training(self, trainer: L.Trainer) -> None:
        """Let fine-tuning begin with the present epoch."""
        assert self._limits is not None
        self.schedule = self.schedule.from_here(self._limits.epochs_done, trainer.global_step)
        self._limits.extend(*self.schedule.limits)
        self.name = "training"

    def _go_on_within_epoch(self, trainer: L.Trainer) -> None:
        """Take up an epoch where a checkpoint left it, unless nothing is left of it."""
        assert self._limits is not None
        float_is_over = self.wanted and (self.name == "due" or (self.name == "float" and self._limits.opened))
        if float_is_over or is_counted(trainer):
            end_epoch(trainer)
        else:
            self._random.within_epoch(trainer, batches_done(trainer))
