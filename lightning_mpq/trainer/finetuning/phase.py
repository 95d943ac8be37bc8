"""What is done to a model in each phase of a fit that fine-tunes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import nn

from ...finetune import FakeQuantization, fake_quantize, freeze_batchnorm, unfreeze_batchnorm
from ...finetune.resume import resume_fake_quantization
from ...inputs.quantizer import InputRange
from ...network.calibration import Calibration
from ...options import FinetuneOptions
from ...policy import BitPolicy
from ...quantizers import QuantizedRows
from ...report.rows import FinetuningRow
from ...tools.clean_up import after_errors
from .distillation_step import DistillationStep
from .fit_phase import FitPhase, PhaseName
from .optimizers import given_optimizers, prepare_optimizers, renew_optimizers, set_learning_rates
from .other_callbacks import AveragingCallbacks, note_groups, restart_early_stopping
from .refusals import (
    refuse_diverged,
    refuse_lost_layers,
    refuse_unfit,
    warn_of_paused_statistics,
    warn_of_weights_alone,
)
from .task_loss import finetuning_row, task_loss


class FinetunePhase:
    """Does what belongs to fine-tuning at each hook of the callback; its `FitPhase` knows when.

    Attributes:
        options: How fine-tuning is done, and for how long.
        fit: Where the fit stands.
        handle: The fake-quantized layers while there are any.
    """

    def __init__(self, options: FinetuneOptions, quantize_at: int | None = None) -> None:
        """Start in the float phase.

        Raises:
            ValueError: If ``quantize_at`` is no epoch.
        """
        self.options = options
        self.fit = FitPhase(options, quantize_at)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of an earlier fit."""
        self.handle: FakeQuantization | None = None
        self._quantized: Mapping[str, Any] | None = None  # state of the handle, before it exists or after it is gone
        self._distillation = DistillationStep(self.options)
        self._weights: set[str] = set()
        self._loss_before: float | None = None

    @property
    def phase(self) -> PhaseName:
        """Where the fit stands."""
        return self.fit.name

    @property
    def wanted(self) -> bool:
        """Whether there is any fine-tuning."""
        return self.fit.wanted

    def attach(self, trainer: L.Trainer, module: L.LightningModule, averaging: AveragingCallbacks) -> None:
        """Take the user's limits, and refuse what cannot work; called in ``setup`` of a fit."""
        self._forget()
        self.fit.attach(trainer, averaging)
        if self.wanted:
            refuse_unfit(trainer, module, self.options)
            warn_of_weights_alone(trainer)

    def detach(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Give Trainer and module back what is theirs; layers that are fake-quantized still become float ones."""
        if self.handle is not None:
            self._quantized = self.handle.state_dict()
            self.handle.restore()
            self.handle = None
        self._release(module)
        given_optimizers(module, None)
        self.fit.detach(trainer)

    def load(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: Mapping[str, Any], state: Any) -> None:
        """Take the phase, and what fine-tuning knows, from a checkpoint that is about to be loaded into a fit.

        Args:
            trainer: In ``setup`` of its fit.
            module: What it trains.
            checkpoint: The whole checkpoint.
            state: What `state` returned; None in the checkpoint of a fit without this callback.

        Raises:
            ValueError: If the options contradict the checkpoint.
        """
        self.fit.load(trainer, checkpoint, state)
        if self.phase != "training":
            return
        if self.options.distill and "teacher" not in state:
            raise ValueError(
                "The checkpoint was fine-tuned without distillation and holds no float model that could teach. Set "
                "distill=0 to go on with it, or start from a checkpoint of the float phase."
            )
        for option, what in (("learn_scales", "scales"), ("learn_ranges", "ranges")):
            own = getattr(self.options, option)
            if (learned := state.get(option, own)) != own:
                raise ValueError(
                    f"The checkpoint was fine-tuned with {option}={learned}, and its optimizers hold "
                    f"{'' if learned else 'no '}{what}; go on with the same FinetuneOptions({option}={learned}), or "
                    "start from a checkpoint of the float phase."
                )
        self._quantized, self._loss_before = state["quantized"], state.get("loss_before")
        self._distillation.load(state.get("teacher"))
        given_optimizers(module, self.options.optimizers)

    def state(self) -> dict[str, Any]:
        """Return where the fit stands, and what fine-tuning knows, as plain values and tensors."""
        state = self.fit.state()
        if self.phase == "training":
            state["quantized"] = self._quantized if self.handle is None else self.handle.state_dict()
            state |= {"learn_scales": self.options.learn_scales, "learn_ranges": self.options.learn_ranges}
            state["loss_before"] = self._loss_before
            if (teacher := self._distillation.state()) is not None:
                state["teacher"] = teacher
        return state

    def resume(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fake-quantize anew what a checkpoint was fine-tuning; called when the model is on its device."""
        self.fit.note_start()
        if self.phase != "training":
            return
        assert self._quantized is not None
        self._distillation.watch(module)
        options = self.options
        self.handle = resume_fake_quantization(
            module,
            self._quantized,
            learn_scales=options.learn_scales,
            learn_ranges=options.learn_ranges,
            margin=options.margin,
        )
        self._set_up(trainer, module)

    def start(self, trainer: L.Trainer) -> None:
        """Judge where the fit stands, and refuse to distill what the module does not have."""
        self.fit.start(trainer)
        if self.wanted and self.options.distill:
            self._distillation.student(trainer.lightning_module)

    def is_due(self, trainer: L.Trainer) -> bool:
        """Tell at the start of an epoch whether the model is to be quantized now; refuse one that lost layers."""
        due = self.fit.is_due(trainer)
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
        ranges: Mapping[str, InputRange],
    ) -> None:
        """Fake-quantize the model in place, repair it, and go on training with fresh optimizers.

        Args:
            trainer: At the start of an epoch.
            module: The float module; on an error it is one again.
            policy: The policy.
            codes: Codes to start from, by layer.
            repair: What is to be done once the layers are fake-quantized, such as measuring statistics again.
            ranges: Ranges of quantized inputs, by layer.
        """
        options = self.options
        self._distillation.watch(module)
        self.handle = fake_quantize(
            module,
            policy,
            codes,
            ranges=ranges,
            learn_scales=options.learn_scales,
            learn_ranges=options.learn_ranges,
            margin=options.margin,
        )
        self.fit.begin_training(trainer)

        def undo() -> None:
            if self.handle is not None:
                self.handle.restore()
            self.handle = None

        with after_errors(undo):
            repair()
            given_optimizers(module, options.optimizers)
            with self.handle.float_weights():  # configure_optimizers may ask a layer for its weight
                renew_optimizers(trainer)
                note_groups(trainer, module)
            self._set_up(trainer, module)
            restart_early_stopping(trainer)
            self.fit.schedule.announce(trainer)

    def note_loss(self, module: L.LightningModule, calibration: Calibration) -> None:
        """Keep the task loss that fine-tuning begins with, for `finished`."""
        with self._distillation.paused(module):
            self._loss_before = task_loss(calibration, module.automatic_optimization)

    def finished(self, module: L.LightningModule, calibration: Callable[[], Calibration]) -> FinetuningRow | None:
        """Return, and say, what became of the task loss of the model that is packed by now; None if unknown."""
        if self._loss_before is None:
            return None
        now = task_loss(calibration(), module.automatic_optimization)
        return finetuning_row(self._loss_before, now, self.options.learning_rate)

    def before_epoch(self, trainer: L.Trainer) -> None:
        """Do what comes last at the start of an epoch."""
        self.fit.before_epoch(trainer)

    def before_batch(self, trainer: L.Trainer, batch_idx: int) -> None:
        """Set the learning rates."""
        if self.phase == "training":
            progress = self.fit.schedule.progress(trainer, batch_idx)
            set_learning_rates(trainer, progress, self.options.schedule)

    def after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Average the gradients of the scales over processes when those of the weights are."""
        if self.handle is None:
            return
        accumulates = module.automatic_optimization and trainer.fit_loop._should_accumulate()
        if not accumulates:
            self.handle.synchronize_gradients()

    def after_epoch(self, trainer: L.Trainer) -> None:
        """At the end of an epoch, see to it that the fit goes on, and refuse a model that has diverged."""
        if self.phase == "training":
            assert self.handle is not None
            refuse_diverged(self.handle, self.options.learning_rate)
        self.fit.after_epoch(trainer)

    def finish_float(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Let the float phase come to its end: averages are written, and nobody asks to stop any more."""
        self.fit.finish_float(trainer, module)

    def pack(self, module: L.LightningModule) -> dict[str, nn.Module]:
        """Replace the fake-quantized layers by packed ones; return the float ones."""
        assert self.handle is not None
        refuse_lost_layers(self.handle, self._weights)
        refuse_diverged(self.handle, self.options.learning_rate)
        floats = self.handle.pack()
        self.handle, self.fit.name = None, "over"
        self._release(module)
        return floats

    def _set_up(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Finish what begins and what resumes: optimizers, distillation, compiled code."""
        assert self.handle is not None
        options = self.options
        self._weights = set(self.handle.weights)
        prepare_optimizers(
            trainer, self.handle, options.learning_rate, options.scale_learning_rate, module.automatic_optimization
        )
        self._distillation.start(module)
        if options.batchnorm == "frozen":
            freeze_batchnorm(module)
        else:
            warn_of_paused_statistics(module)
        if any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in module.modules()):
            torch._dynamo.reset()  # what was compiled has float layers in it

    def _release(self, module: L.LightningModule) -> None:
        self._distillation.stop(module)
        unfreeze_batchnorm(module)
