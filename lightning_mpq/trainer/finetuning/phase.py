"""What is done to a model in each phase of a fit that fine-tunes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import nn
from typing_extensions import override

from ...finetune import (
    FakeQuantization,
    fake_quantize,
    freeze_batchnorm,
    unfreeze_batchnorm,
)
from ...finetune.resume import resume_fake_quantization
from ...options import FinetuneOptions
from ...pipeline.pipeline import Pipeline
from ...policy import BitPolicy
from ...quantizers import QuantizedRows
from ...report import FinetuningRow, ReallocationRow
from .averaging import AveragingCallbacks
from .early_stopping import forget_the_float_record
from .extra_loss import ExtraLoss
from .fit_phase import FitClock
from .optimizers import (
    given_optimizers,
    prepare_optimizers,
    renew_optimizers,
    set_learning_rates,
)
from .oscillations import OscillationWatch
from .reallocation import reallocate
from .refusals import (
    refuse_diverged,
    refuse_lost_layers,
    refuse_unfit,
    warn_of_resting_statistics,
)
from .task_loss import judged, task_loss


class FinetunePhase(FitClock):
    """Does what belongs to fine-tuning at each hook of the callback; the clock knows when.

    Attributes:
        handle: The fake-quantized layers while there are any.
        reallocations: The plans that were solved again on the way.
    """

    def __init__(self, options: FinetuneOptions, quantize_at: int | None = None) -> None:
        """Start in the float phase.

        Raises:
            ValueError: If ``quantize_at`` is no epoch.
        """
        super().__init__(options, quantize_at)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of an earlier fit."""
        self.handle: FakeQuantization | None = None
        self.reallocations: tuple[ReallocationRow, ...] = ()
        self._quantized: Mapping[str, Any] | None = None  # state of the handle, before it exists or after it is gone
        self._extra = ExtraLoss(self.options)
        self._oscillations = OscillationWatch(self.options.freeze_oscillations)
        self._weights: set[str] = set()
        self._loss_before: float | None = None

    @override
    def attach(self, trainer: L.Trainer, module: L.LightningModule, averaging: AveragingCallbacks) -> None:
        """Take the user's limits, and refuse what cannot work; called in ``setup`` of a fit."""
        self._forget()
        super().attach(trainer, module, averaging)
        if self.wanted:
            refuse_unfit(trainer, module, self.options)

    @override
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
        super().detach(trainer, module)

    @override
    def load(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: Mapping[str, Any], state: Any) -> None:
        """Take the phase, and what fine-tuning knows, from a checkpoint that is about to be loaded into a fit."""
        super().load(trainer, module, checkpoint, state)
        if self.phase != "training":
            return
        if self.options.distill and "teacher" not in state:
            raise ValueError(
                "The checkpoint was fine-tuned without distillation and holds no float model that could teach. Set "
                "distill=0 to go on with it, or start from a checkpoint of the float phase."
            )
        learned = state.get("learn_scales", self.options.learn_scales)
        if learned != self.options.learn_scales:
            raise ValueError(
                f"The checkpoint was fine-tuned with learn_scales={learned}, and its optimizers hold "
                f"{'' if learned else 'no '}scales; go on with the same FinetuneOptions(learn_scales={learned}), or "
                "start from a checkpoint of the float phase."
            )
        self._quantized, self._loss_before = state["quantized"], state.get("loss_before")
        rows = json.loads(state.get("reallocations", "[]"))
        self.reallocations = tuple(ReallocationRow.from_dict(row) for row in rows)
        self._extra.load(state.get("teacher"))
        self._oscillations.load(state.get("oscillations"))
        given_optimizers(module, self.options.optimizers)

    @override
    def state(self) -> dict[str, Any]:
        """Return where the fit stands, and what fine-tuning knows, as plain values and tensors."""
        state = super().state()
        if self.phase == "training":
            state["quantized"] = self._quantized if self.handle is None else self.handle.state_dict()
            state |= {"learn_scales": self.options.learn_scales, "loss_before": self._loss_before}
            state["reallocations"] = json.dumps([asdict(row) for row in self.reallocations])
            if (teacher := self._extra.state()) is not None:
                state["teacher"] = teacher
            if (seen := self._oscillations.state()) is not None:
                state["oscillations"] = seen
        return state

    @override
    def resume(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fake-quantize anew what a checkpoint was fine-tuning; called when the model is on its device."""
        super().resume(trainer, module)
        if self.phase != "training":
            return
        assert self._quantized is not None
        self._extra.watch(module)
        options = self.options
        self.handle = resume_fake_quantization(
            module, self._quantized, learn_scales=options.learn_scales, margin=options.margin
        )
        self._set_up(trainer, module)

    @override
    def start(self, trainer: L.Trainer) -> None:
        """Judge where the fit stands, and refuse to distill what the module does not have."""
        super().start(trainer)
        if self.wanted and self.options.distill:
            self._extra.student(trainer.lightning_module)

    @override
    def is_due(self, trainer: L.Trainer) -> bool:
        """Tell at the start of an epoch whether the model is to be quantized now; refuse one that lost layers."""
        due = super().is_due(trainer)
        if self.phase == "training":
            assert self.handle is not None
            refuse_lost_layers(self.handle, self._weights)
        return due

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
        options = self.options
        self._extra.watch(module)
        self.handle = fake_quantize(module, policy, codes, learn_scales=options.learn_scales, margin=options.margin)
        self._begin_training(trainer)
        try:
            repair()
            given_optimizers(module, options.optimizers)
            with self.handle.float_weights():  # configure_optimizers may ask a layer for its weight
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

    def judge(
        self, module: L.LightningModule, pipeline: Pipeline, batches: Callable[[], list[Any]]
    ) -> FinetuningRow | None:
        """Return, and tell, what became of the task loss of the model that is packed by now; None if unknown."""
        if self._loss_before is None:
            return None
        return judged(self._loss_before, task_loss(module, batches(), pipeline), self.options.learning_rate)

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

    @override
    def after_epoch(self, trainer: L.Trainer) -> None:
        """At the end of an epoch, see to it that the fit goes on, and refuse a model that has diverged."""
        if self.phase == "training":
            assert self.handle is not None
            refuse_diverged(self.handle, self.options.learning_rate)
        super().after_epoch(trainer)

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
