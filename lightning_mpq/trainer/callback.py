"""The callback: a Trainer's fit ends with a packed mixed-precision model and a report on it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.compile import _maybe_unwrap_optimized
from torch._dynamo import OptimizedModule
from typing_extensions import override

from ..allocation import Allocation, Budget
from ..curvature import TaylorModel
from ..finetune.resume import pack_finetuned
from ..modules import packed_layers
from ..network.forward import ForwardFn, LossFn
from ..network.lazy import uninitialized_layer
from ..options import (
    CandidateOptions,
    CurvatureOptions,
    FinetuneOptions,
    RepairOptions,
    SelectionOptions,
    SolverOptions,
)
from ..pipeline.pipeline import Outcome, Pipeline
from ..pipeline.settings import JobSettings
from ..policy import BitPolicy
from ..report.records import Report
from ..targets import Target, target_named
from ..tools.checks import check_one_of, shown
from ..tools.kinds import checked_kinds
from ..tools.renamed import renamed
from .checkpoints.checkpoint import callback_state, finetuned_state, made_ready
from .checkpoints.instantiator import let_lightning_load
from .checkpoints.refusals import refuse_checkpoint
from .finetuning.other_callbacks import AveragingCallbacks
from .finetuning.phase import FinetunePhase
from .finetuning.refusals import plain_budget, refuse_another_policy, refuse_pruning
from .job import QuantizationJob
from .strategies import refuse_unsupported


class MixedPrecisionQuantization(Callback):
    """Quantize the model at the end of fit, each layer to the bits that the loss asks for.

    After the last training epoch the callback measures a second-order Taylor model of the loss on calibration
    batches, assigns bits under the budget by an integer program, replaces the layers by packed ones,
    re-estimates BatchNorm statistics, and validates float, uniform, additive and chosen model side by side.
    Training itself is not touched. What could not be quantized at the end (a budget that nothing keeps, a batch that
    the model does not take) is refused at the start.

    With ``finetune_epochs`` or ``finetune_steps`` the fit goes on after the last epoch: layers compute with rounded
    weights, parameters, state-dict keys and signatures stay, scales learn, and the layers are packed at the end.
    Every checkpoint on the way resumes (the phase and the scales are in the callback's state) and converts
    (`load`). EMA and SWA end with the float phase; list them first.

    One device, CPU or GPU, or several under ``strategy="ddp"``: each process then measures its share of the
    calibration batches, one of them solves, and all pack the same model. So do those of FSDP (``FSDPStrategy``, or
    ``ModelParallelStrategy`` with ``fully_shard``), where each of them takes the whole model at the end of the fit.

    Calibration batches come from ``calibration_dataloader()`` of the datamodule or the module, if there is one
    (unaugmented training data is best), otherwise from the training loader. They are drawn with a seed of their own, so
    that the same weights give the same policy whatever was drawn before.

    Args:
        budget: Upper bounds on the quantized model; a number means average bits per weight.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        solver: How the bits are assigned.
        calibration_batches: How many batches to calibrate on, all processes together.
        forward_fn: ``(module, batch) -> outputs``; by default the module is called on the batch, or on the first
            item of a tuple or list.
        loss_fn: ``(module, batch) -> scalar``, for the task loss; by default the module's ``training_step``.
        selection: Whether several policies are measured before one is chosen.
        repair: What makes up for rounding once the policy is chosen.
        target: The runtime that the policy is for, by name or as a `Target`: "torch", "onnxruntime", "vllm",
            "llama-cpp". It says which layers may have which schemes and which must agree, and budgets count the bytes
            of its file.
        finetune: How the quantized model is trained on; by default not at all.
        finetune_epochs: Epochs of it, instead of those in ``finetune``.
        finetune_steps: Optimizer steps, instead of epochs.
        quantize_at: Epoch before which the float phase ends, by default at the end of the fit. Fine-tuning then takes
            ``finetune_epochs``, or what is left of the Trainer's epochs if they are 0.
        policy: A policy, or a file with one (``policy.save(path)``), to be followed; nothing is profiled then.
        compare: Whether float, uniform, additive and chosen model are measured and reported.
        report_path: File for the report, relative to the Trainer's log directory, with the page ``report.html`` beside
            it; None for no file.
        cache_dir: Folder where rounded weights and Taylor models are kept, so that another budget on the same
            weights, candidates and data rounds and profiles nothing again, and a profile that was interrupted goes
            on; None for no cache.

    Attributes:
        allocation: The policy with its certificate; None before the end of fit.
        policy: The policy alone; restored from a checkpoint.
        taylor: The Taylor model that the policy was solved from.
        report: The comparison.
        target: The runtime that the policy is for, which `export_for` takes.

    Example::

        mixed = MixedPrecisionQuantization(budget=Budget(average_bits=3.0))
        trainer = L.Trainer(max_epochs=10, callbacks=[mixed])
        trainer.fit(model, datamodule)
    """

    @renamed(verdict="compare", loop="selection")
    @checked_kinds
    def __init__(
        self,
        budget: Budget | float,
        *,
        candidates: CandidateOptions | None = None,
        curvature: CurvatureOptions | None = None,
        solver: SolverOptions | None = None,
        selection: SelectionOptions | None = None,
        repair: RepairOptions | None = None,
        target: Target | str = "torch",
        calibration_batches: int = 8,
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        finetune: FinetuneOptions | None = None,
        finetune_epochs: int | None = None,
        finetune_steps: int | None = None,
        quantize_at: int | None = None,
        policy: BitPolicy | str | Path | None = None,
        compare: bool = True,
        report_path: str | Path | None = "report.json",
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if isinstance(calibration_batches, bool) or not isinstance(calibration_batches, int) or calibration_batches < 1:
            raise ValueError(f"calibration_batches must be a positive integer, got {shown(calibration_batches)}.")
        check_one_of("compare", compare, (True, False))
        options = finetune or FinetuneOptions()
        if finetune_epochs is not None or finetune_steps is not None:
            options = replace(options, epochs=finetune_epochs or 0, steps=finetune_steps)
        settings = JobSettings(
            budget=budget if isinstance(budget, Budget) else Budget(average_bits=budget),
            candidates=candidates or CandidateOptions(),
            curvature=curvature or CurvatureOptions(),
            solver=solver or SolverOptions(),
            selection=selection or SelectionOptions(),
            repair=repair or RepairOptions(),
            forward_fn=forward_fn,
            loss_fn=loss_fn,
            target=target_named(target),
            cache_dir=cache_dir,
        )
        given = policy if policy is None or isinstance(policy, BitPolicy) else BitPolicy.load(policy)
        self.job = QuantizationJob(Pipeline(settings), calibration_batches, given, compare, report_path)
        self.finetuning = FinetunePhase(options, quantize_at)
        self.policy = given
        self.target = settings.target
        self.allocation: Allocation | None = None
        self.taylor: TaylorModel | None = None
        self.report: Report | None = None
        self._call_is_known = False
        self._came_to_its_end = False

    @checked_kinds
    def quantize_trained(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule | OptimizedModule,
        datamodule: L.LightningDataModule | None = None,
    ) -> Outcome | None:
        """Do at once, on a model that is trained already, what the callback does at the end of fit.

        There is no fine-tuning here: for that, fit a trained module with ``quantize_at=0``.

        Args:
            trainer: Gives device, progress bar, loggers and validation; need not have this callback.
            pl_module: The trained float module, compiled or not; quantized in place.
            datamodule: The data; by default the module's own loaders.

        Returns:
            What was found, or None where the policy was given; the attributes of the callback are set as well.
        """
        module = _maybe_unwrap_optimized(pl_module)
        return self._keep(self.job.run_on_trained(trainer, module, datamodule))

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work before any time is spent, and make ready for a checkpoint of ours."""
        refuse_unsupported(trainer.strategy, self.finetuning.wanted)
        if stage == "fit":
            self._came_to_its_end = False
            refuse_pruning(trainer, self, self.finetuning.wanted)
            self.finetuning.attach(trainer, pl_module, AveragingCallbacks(trainer, self))
        own_hook = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            self._before_loading(trainer, pl_module, stage, checkpoint)
            with made_ready(pl_module, checkpoint):
                own_hook(checkpoint)

        # A callback learns its state only after the weights are loaded; the module's own hook comes before.
        pl_module.__dict__["on_load_checkpoint"] = on_load_checkpoint

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give module and Trainer back what is theirs."""
        pl_module.__dict__.pop("on_load_checkpoint", None)
        self.finetuning.detach(trainer, pl_module)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave a float module with the weights as they are; checkpoints written now still resume."""
        self.teardown(trainer, pl_module, "fit")

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let Lightning's own ``load_from_checkpoint`` open checkpoints of the packed model."""
        let_lightning_load(checkpoint, pl_module)

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Pack, to validate, test or predict, what the checkpoint was still fine-tuning; its weights are loaded."""
        state = finetuned_state(checkpoint)
        if state is not None and trainer.state.fn != TrainerFn.FITTING:
            pack_finetuned(pl_module, state)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take up fine-tuning where a checkpoint left it; its optimizer states are loaded afterwards."""
        pl_module.__dict__.pop("on_load_checkpoint", None)
        self.finetuning.resume(trainer, pl_module)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """See where the fit stands, and whether it can come to its end."""
        self.finetuning.start(trainer)
        if self.finetuning.phase == "float":
            self.job.check(trainer, pl_module)
        self._call_is_known = False

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn the float model into one that is fine-tuned, if it is time."""
        if self.finetuning.is_due(trainer):
            decision, self.report = self.job.begin_finetuning(trainer, pl_module, self.finetuning)
            if decision is not None:
                self.taylor, self.allocation = decision.taylor, decision.allocation
                self.policy = decision.allocation.policy
        self.finetuning.before_epoch(trainer)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rates of fine-tuning; try on the first batch what will be done on others.

        Lazy layers wait for the first training step, and are tried on the second batch.
        """
        if not self._call_is_known and uninitialized_layer(pl_module) is None:
            self._call_is_known = True
            if self.finetuning.phase == "float":
                self.job.check_batch(trainer, pl_module, batch)
        if self.finetuning.phase == "float":
            self.job.keep_batch(trainer, pl_module, batch)
        self.finetuning.before_batch(trainer, batch_idx)

    @override
    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the learned scales in step on all processes."""
        self.finetuning.after_backward(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the fit go on if there is something left to do."""
        self.finetuning.after_epoch(trainer)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the whole job, or what is left of it, while the Trainer's device, precision and loaders are there."""
        self._came_to_its_end = True
        if self.finetuning.phase == "training":
            self.report = self.job.finish_finetuning(trainer, pl_module, self.finetuning, self.report)
            return
        if self.finetuning.wanted:
            rank_zero_warn(
                "The fit ended before fine-tuning could begin (max_time, or no training batches), so the model is "
                "quantized without it.",
                category=UserWarning,
            )
        self._keep(self.job.run_in_fit(trainer, pl_module))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so if Lightning has skipped the training, and with it the quantization."""
        if self._came_to_its_end or packed_layers(pl_module):
            return
        reason = "had no training batches (limit_train_batches=0, or a loader without batches)"
        if epochs := trainer.fit_loop.epoch_progress.current.completed:
            reason = f"had nothing left to do: this Trainer's epochs and steps were over before ({epochs} epochs)"
        rank_zero_warn(
            f"Nothing was quantized, since the fit {reason}. mixed.quantize_trained(trainer, model, data) quantizes a "
            "trained model without a fit.",
            category=UserWarning,
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return policy and phase as text and tensors, which ``torch.load(weights_only=True)`` opens."""
        state: dict[str, Any] = {} if self.policy is None else {"policy": self.policy.to_json()}
        if self.finetuning.wanted and self.finetuning.phase != "over":
            state["finetuning"] = self.finetuning.state()
            state["budget"] = plain_budget(self.job.pipeline.settings.budget)
            if self.report is not None:
                state["report"] = json.dumps(self.report.to_dict())
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take policy and report from a checkpoint; `FinetunePhase.load` takes the phase, before the weights."""
        if "policy" in state_dict:
            self.policy = BitPolicy.from_json(state_dict["policy"])
        if "report" in state_dict:
            self.report = Report.from_dict(json.loads(state_dict["report"]))

    def _keep(self, outcome: Outcome | None) -> Outcome | None:
        """Keep what a job has found, for the user."""
        if outcome is not None:
            self.taylor, self.allocation, self.report = outcome.taylor, outcome.allocation, outcome.report
            self.policy = outcome.allocation.policy
        return outcome

    def _before_loading(
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse a checkpoint that this fit cannot go on from, and make the Trainer fit it."""
        refuse_checkpoint(checkpoint, Path(trainer.ckpt_path or ""), to_be_trained=stage == "fit")
        if stage == "fit":
            state = callback_state(checkpoint) or {}
            refuse_another_policy(state, self.job.policy, self.job.pipeline.settings.budget)
            self.finetuning.load(trainer, pl_module, checkpoint, state.get("finetuning"))
