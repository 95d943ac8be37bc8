"""The phases of a fit that fine-tunes: float, due for quantization, training behind quantization, over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from ..finetune import FakeQuantization, fake_quantize, freeze_batchnorm, unfreeze_batchnorm
from ..finetune.resume import resume_fake_quantization
from ..options import FinetuneOptions
from ..pipeline import Pipeline
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..report import FinetuningRow, ReallocationRow
from .averaging import AveragingCallbacks
from .early_stopping import forget_the_float_record
from .extra_loss import ExtraLoss
from .gain import judged, task_loss
from .limits import FitLimits
from .midway import batches_done, end_epoch, is_counted
from .optimizers import given_optimizers, prepare_optimizers, renew_optimizers, set_learning_rates
from .oscillations import OscillationWatch
from .random_states import RandomStates
from .reallocation import reallocate
from .refusals import check_epoch, refuse_diverged, refuse_lost_layers, refuse_unfit, warn_of_resting_statistics
from .span import Span, span_of

Phase = Literal["float", "due", "training", "over"]


class FinetunePhase:
    """Knows where a fit stands, and does what belongs to fine-tuning at each hook of the callback.

    Attributes:
        phase: "float" until the limits of the float phase are reached; "due" until the model is fake-quantized;
            "training" until it is packed; "over".
        options: How it is done.
        quantize_at: Epoch before which the float phase ends; None for the end of the fit.
        handle: The fake-quantized layers while there are any.
        reallocations: The plans that were solved again on the way.
    """

    def __init__(self, options: FinetuneOptions, quantize_at: int | None = None) -> None:
        """Start in the float phase.

        Raises:
            ValueError: If ``quantize_at`` is no epoch.
        """
        check_epoch(quantize_at)
        self.options, self.quantize_at = options, quantize_at
        self.phase: Phase = "float"
        self.handle: FakeQuantization | None = None
        self._limits: FitLimits | None = None
        self._averaging: AveragingCallbacks | None = None
        self._random = RandomStates()
        self._span = Span(options.epochs, options.steps)
        self._quantized: Mapping[str, Any] | None = None  # state of the handle, before it exists or after it is gone
        self._extra, self._oscillations = ExtraLoss(options), OscillationWatch(options.freeze_oscillations)
        self._weights: set[str] = set()
        self.reallocations: tuple[ReallocationRow, ...] = ()
        self._loss_before: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is any fine-tuning."""
        return bool(self.options.epochs) or self.options.steps is not None or self.quantize_at is not None

    def attach(self, trainer: L.Trainer, module: L.LightningModule, averaging: AveragingCallbacks) -> None:
        """Take the user's limits, and refuse what cannot work; called in ``setup`` of a fit."""
        self.phase, self.handle, self._quantized, self._extra = "float", None, None, ExtraLoss(self.options)
        self.reallocations, self._loss_before, self._random = (), None, RandomStates()
        self._oscillations = OscillationWatch(self.options.freeze_oscillations)
        self._limits = FitLimits(trainer, self.quantize_at)
        self._averaging = averaging
        self._span = span_of(trainer, self.options.epochs, self.options.steps)
        if self.wanted:
            refuse_unfit(trainer, module, self.options)

    def detach(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give Trainer and module back what is theirs; layers that are fake-quantized still become float ones."""
        if self.handle is not None:
            self._quantized = self.handle.state_dict()
            self.handle.restore()
            self.handle = None
        self._extra.stop(module)
        self._oscillations.stop()
        unfreeze_batchnorm(module)
        given_optimizers(module, None)
        if self._averaging is not None:
            self._averaging.wake(trainer)
        if self._limits is not None:
            self._limits.restore()
            self._limits = None

    def load(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: Mapping[str, Any], state: Any) -> None:
        """Take the phase from a checkpoint that is about to be loaded into a fit; ``state`` is None in another's."""
        assert self._limits is not None
        assert self._averaging is not None
        if state is not None:
            self.phase = state["phase"]
            self._random.load(trainer, state.get("random"))
            rows = json.loads(state.get("reallocations", "[]"))
            self.reallocations = tuple(ReallocationRow.from_dict(row) for row in rows)
        if self.phase == "training":
            assert state is not None
            self._span = self._span.from_here(int(state["first_epoch"]), int(state["first_step"]))
            self._quantized = state["quantized"]
            self._loss_before = state.get("loss_before")
            if self.options.distill and "teacher" not in state:
                raise ValueError(
                    "The checkpoint was fine-tuned without distillation and holds no float model that could teach. Set "
                    "distill=0 to go on with it, or start from a checkpoint of the float phase."
                )
            self._extra.load(state.get("teacher"))
            self._oscillations.load(state.get("oscillations"))
            self._averaging.sleep(trainer)
            given_optimizers(module, self.options.optimizers)
            self._limits.extend(*self._span.limits)
        self._limits.open_for(checkpoint)

    def state(self) -> dict[str, Any]:
        """Return where the fit stands as plain values and tensors."""
        limits = self._limits
        over = limits is not None and (limits.reached() or limits.stopped_early())
        state: dict[str, Any] = {"phase": "due" if self.phase == "float" and over else self.phase}
        state["random"] = self._random.state()
        if self.phase == "training":
            quantized = self._quantized if self.handle is None else self.handle.state_dict()
            state |= {"first_epoch": self._span.first_epoch, "first_step": self._span.first_step}
            state |= {"quantized": quantized, "loss_before": self._loss_before}
            state["reallocations"] = json.dumps([asdict(row) for row in self.reallocations])
            if (teacher := self._extra.state()) is not None:
                state["teacher"] = teacher
            if (seen := self._oscillations.state()) is not None:
                state["oscillations"] = seen
        return state

    def resume(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fake-quantize anew what a checkpoint was fine-tuning; called when the model is on its device."""
        self._random.before_fit()
        if self.phase != "training":
            return
        assert self._quantized is not None
        self._extra.watch(module)
        options = self.options
        self.handle = resume_fake_quantization(
            module, self._quantized, learn_scales=options.learn_scales, margin=options.margin
        )
        self._set_up(trainer, module)

    def start(self, trainer: L.Trainer) -> None:
        """Judge, once the loop has taken its progress from the checkpoint, where it stands; in ``on_train_start``."""
        assert self._limits is not None
        if trainer.fit_loop.restarted_mid_epoch:
            self._go_on_within_epoch(trainer)
        if self.phase == "training":
            self._limits.extend(*self._span.limits)
        elif not self.wanted:
            if self._limits.opened:
                self._limits.extend(0, 0, 0, None)
        elif self._limits.opened or self._limits.reached():
            self.phase = "due"
            self._limits.keep_open()

    def is_due(self, trainer: L.Trainer) -> bool:
        """Tell at the start of an epoch whether the model is to be quantized now."""
        assert self._limits is not None
        self._random.before_epoch()
        if self.phase == "training":
            assert self.handle is not None
            refuse_lost_layers(self.handle, self._weights)
        if self.phase not in ("float", "due") or not self.wanted:
            return False
        if self.phase == "float" and (self._limits.reached() or self._limits.stopped_early()):
            self.phase = "due"
        if self.phase == "due" and self._limits.time_is_over():
            rank_zero_warn(
                "The Trainer's max_time has passed, so the model is quantized without fine-tuning.",
                category=UserWarning,
            )
            self.phase = "float"
            trainer.should_stop = True
            self._limits.extend(0, 0, 0, None)
            return False
        return self.phase == "due"

    def finish_float(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let the float phase come to its end: averages are written, and nobody asks to stop any more."""
        assert self._averaging is not None
        trainer.should_stop = False
        self._averaging.finish(trainer, module)

    def begin(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        policy: BitPolicy,
        codes: Mapping[str, QuantizedRows],
        repair: Callable[[], Any],
    ) -> None:
        """Fake-quantize the model in place, repair it, and go on training with fresh optimizers.

        Args:
            trainer: At the start of an epoch.
            module: The float module; on an error it is one again.
            policy: The plan.
            codes: Codes to start from, by layer.
            repair: What is to be done once the layers are fake-quantized, such as measuring statistics again.
        """
        assert self._limits is not None
        options = self.options
        self._extra.watch(module)
        self.handle = fake_quantize(module, policy, codes, learn_scales=options.learn_scales, margin=options.margin)
        self._span = self._span.from_here(self._limits.epochs_done, trainer.global_step)
        self._limits.extend(*self._span.limits)
        self.phase = "training"
        try:
            repair()
            given_optimizers(module, options.optimizers)
            renew_optimizers(trainer)
            self._set_up(trainer, module)
            forget_the_float_record(trainer)
            self._span.announce(trainer)
        except BaseException:
            self.handle.restore()
            self.handle = None
            raise

    def note_loss(self, module: L.LightningModule, pipeline: Pipeline, batches: list[Any]) -> None:
        """Keep the task loss that fine-tuning begins with, for `judge`."""
        with self._extra.paused(module):
            self._loss_before = task_loss(module, batches, pipeline)

    def judge(self, module: L.LightningModule, pipeline: Pipeline, batches: list[Any]) -> FinetuningRow | None:
        """Return, and tell, what became of the task loss of the model that is packed by now; None if unknown."""
        if self._loss_before is None:
            return None
        return judged(self._loss_before, task_loss(module, batches, pipeline), self.options.learning_rate)

    def reallocation_is_due(self, trainer: L.Trainer) -> bool:
        """Tell at the start of an epoch whether the plan is to be solved again now."""
        every, done = self.options.reallocate_every, trainer.current_epoch - self._span.first_epoch
        if self.phase != "training" or not every or done < 1 or done % every:
            return False
        return trainer.current_epoch not in [row.epoch for row in self.reallocations]

    def reallocate(
        self, trainer: L.Trainer, module: L.LightningModule, pipeline: Pipeline, batches: list[Any]
    ) -> BitPolicy:
        """Solve again under the same budget, and move the bits if that pays; return the plan to go on with."""
        assert self.handle is not None
        with self._extra.paused(module):
            row = reallocate(
                module, self.handle, trainer.optimizers, pipeline, batches, self.options, trainer.current_epoch
            )
        if row.kept:
            moved = {layer for group in row.moved for layer in self.handle.policy.layers[group]}
            self._oscillations.forget(moved & self._weights)
        self.reallocations = (*self.reallocations, row)
        return self.handle.policy

    def before_epoch(self, trainer: L.Trainer) -> None:
        """Do what comes last at the start of an epoch."""
        self._random.before_order(trainer)

    def before_batch(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Set the learning rates."""
        if self.phase == "training":
            set_learning_rates(trainer.optimizers, self._span.progress(trainer, batch_idx), self.options.schedule)

    def after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Average the gradients of the scales over processes when those of the weights are."""
        if self.handle is None:
            return
        accumulates = module.automatic_optimization and trainer.fit_loop._should_accumulate()
        if not accumulates:
            self.handle.synchronize_gradients()

    def after_epoch(self, trainer: L.Trainer) -> None:
        """At the end of a float epoch, see to it that the fit goes on to where `is_due` is asked; of others, check."""
        assert self._limits is not None
        if self.phase == "training":
            assert self.handle is not None
            refuse_diverged(self.handle, self.options.learning_rate)
        if not self.wanted or self.phase not in ("float", "due"):
            return
        if self._limits.reached():
            self.phase = "due"
        if not self._limits.time_is_over():
            self._limits.keep_open()

    def pack(self, module: L.LightningModule) -> dict[str, nn.Module]:
        """Replace the fake-quantized layers by packed ones; return the float ones."""
        assert self.handle is not None
        refuse_lost_layers(self.handle, self._weights)
        refuse_diverged(self.handle, self.options.learning_rate)
        floats = self.handle.pack()
        self.handle, self.phase = None, "over"
        self._extra.stop(module)
        self._oscillations.stop()
        unfreeze_batchnorm(module)
        return floats

    def _go_on_within_epoch(self, trainer: L.Trainer) -> None:
        """Take up an epoch where a checkpoint left it, unless nothing is left of it."""
        assert self._limits is not None
        float_is_over = self.wanted and (self.phase == "due" or (self.phase == "float" and self._limits.opened))
        if float_is_over or is_counted(trainer):
            end_epoch(trainer)
        else:
            self._random.within_epoch(trainer, batches_done(trainer))

    def _set_up(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Finish what begins and what resumes: optimizers, distillation, compiled code."""
        assert self.handle is not None
        options = self.options
        self._weights = set(self.handle.weights)
        prepare_optimizers(
            trainer, self.handle, options.learning_rate, options.scale_learning_rate, module.automatic_optimization
        )
        self._extra.start(module, self.handle)
        self._oscillations.start(self.handle, trainer.optimizers)
        if options.batchnorm == "frozen":
            freeze_batchnorm(module)
        else:
            warn_of_resting_statistics(module)
        if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in module.modules()):
            torch._dynamo.reset()  # what was compiled has float layers in it
