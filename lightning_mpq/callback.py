"""The callback: a Trainer's fit ends with a packed mixed-precision model and the verdict on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from .allocation import Allocation, Budget
from .calling import ForwardFn
from .curvature import TaylorModel
from .curvature.evaluator import LossFn
from .distributed import alone, mean_over_ranks, share_buffers
from .export.checkpoint import callback_state, finetuned_state, policy_in_checkpoint
from .finetune.resume import pack_finetuned
from .modules import empty_packed_model, packed_layers, restore_layers
from .options import CandidateOptions, CurvatureOptions, FinetuneOptions, LoopOptions, RepairOptions, SolverOptions
from .pipeline import Outcome, Pipeline
from .policy import BitPolicy
from .quantize import quantize
from .report import Report
from .strategies import refuse_several_processes, refuse_unsupported
from .trainer_tools import calibration_loader, validation_metrics
from .training import AveragingCallbacks, FinetunePhase, finetuned_row, publish
from .training.plans import plain_budget, read_policy, refuse_another_plan
from .training.work import at_work, batches_in_fit
from .workbench import Workbench


class MixedPrecisionQuantization(Callback):
    """Quantize the model at the end of fit, each layer to the bits that the loss asks for.

    After the last training epoch the callback measures a second-order Taylor model of the loss on calibration
    batches, assigns bits under the budget by an integer program, replaces the layers by packed ones,
    re-estimates BatchNorm statistics, and validates float, uniform, additive and chosen model side by side.
    Training itself is not touched.

    With ``finetune_epochs`` or ``finetune_steps`` the fit goes on behind the last epoch: layers compute with rounded
    weights, parameters, state-dict keys and signatures stay, scales learn, and the layers are packed at the end.
    Every checkpoint on the way resumes (the phase and the scales are in the callback's state) and converts
    (`load_checkpoint`). EMA and SWA end with the float phase; list them first.

    One device, CPU or GPU, or several under ``strategy="ddp"``: each process then measures its share of the
    calibration batches, one of them solves, and all pack the same model.

    Calibration batches come from ``calibration_dataloader()`` of the datamodule or the module, if there is one
    (unaugmented training data is best), otherwise from the training loader.

    Args:
        budget: Upper bounds on the quantized model; a number means average bits per weight.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        solver: How the bits are assigned.
        calibration_batches: How many batches to calibrate on, all processes together.
        forward_fn: ``(module, batch) -> outputs``; by default the module is called on the batch, or on the first
            item of a tuple or list.
        loss_fn: ``(module, batch) -> scalar``, for the task loss; by default the module's ``training_step``.
        repair: What makes up for rounding once the plan is chosen.
        loop: Whether several plans are measured before one is chosen.
        finetune: How the model is trained on behind quantization; by default not at all.
        finetune_epochs: Epochs of it, instead of those in ``finetune``.
        finetune_steps: Optimizer steps, instead of epochs.
        quantize_at: Epoch before which the float phase ends, by default at the end of the fit. Fine-tuning then takes
            ``finetune_epochs``, or what is left of the Trainer's epochs if they are 0.
        policy: A plan, or a file with one (``policy.to_json()``), to be followed; nothing is profiled then.
        verdict: Whether float, uniform, additive and chosen model are measured and reported.
        report_path: File for the report, relative to the Trainer's log directory; None for no file.
        cache_dir: Folder where Taylor models are kept, so that another budget on the same weights, candidates
            and data profiles nothing again, and a profile that was interrupted goes on; None for no cache.

    Attributes:
        allocation: The plan with its certificate; None before the end of fit.
        policy: The plan alone; restored from a checkpoint.
        taylor: The Taylor model behind the plan.
        report: The verdict.

    Example::

        mixed = MixedPrecisionQuantization(budget=Budget(average_bits=3.0))
        trainer = L.Trainer(max_epochs=10, callbacks=[mixed])
        trainer.fit(model, datamodule)
    """

    def __init__(
        self,
        budget: Budget | float,
        *,
        candidates: CandidateOptions | None = None,
        curvature: CurvatureOptions | None = None,
        solver: SolverOptions | None = None,
        calibration_batches: int = 8,
        forward_fn: ForwardFn | None = None,
        loss_fn: LossFn | None = None,
        repair: RepairOptions | None = None,
        loop: LoopOptions | None = None,
        finetune: FinetuneOptions | None = None,
        finetune_epochs: int | None = None,
        finetune_steps: int | None = None,
        quantize_at: int | None = None,
        policy: BitPolicy | str | Path | None = None,
        verdict: bool = True,
        report_path: str | Path | None = "report.json",
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if isinstance(calibration_batches, bool) or not isinstance(calibration_batches, int) or calibration_batches < 1:
            raise ValueError(f"calibration_batches must be a positive integer, got {calibration_batches!r}.")
        self.pipeline = Pipeline(
            budget=budget if isinstance(budget, Budget) else Budget(average_bits=budget),
            candidates=candidates or CandidateOptions(),
            curvature=curvature or CurvatureOptions(),
            solver=solver or SolverOptions(),
            forward_fn=forward_fn,
            loss_fn=loss_fn,
            repair=repair or RepairOptions(),
            loop=loop or LoopOptions(),
            cache_dir=cache_dir,
        )
        options = finetune or FinetuneOptions()
        if finetune_epochs is not None or finetune_steps is not None:
            options = replace(options, epochs=finetune_epochs or 0, steps=finetune_steps)
        if options.reallocate_every and policy is not None:
            raise ValueError("reallocate_every solves for a plan, and policy= gives one to be followed; leave one out.")
        self.finetuning = FinetunePhase(options, quantize_at)
        self.calibration_batches = calibration_batches
        self.verdict = verdict
        self.report_path = report_path
        self.given_policy = policy if policy is None or isinstance(policy, BitPolicy) else read_policy(policy)
        self.allocation: Allocation | None = None
        self.policy: BitPolicy | None = self.given_policy
        self.taylor: TaylorModel | None = None
        self.report: Report | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work before any time is spent, and make ready for a checkpoint of ours."""
        refuse_unsupported(trainer.strategy)
        if stage == "fit":
            self.finetuning.attach(trainer, pl_module, AveragingCallbacks(trainer, self))
        # A callback learns its state only after the weights are loaded; the module's own hook comes before.
        pl_module.__dict__["on_load_checkpoint"] = partial(
            self._before_loading, trainer, pl_module, stage, pl_module.on_load_checkpoint
        )

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give module and Trainer back what is theirs."""
        pl_module.__dict__.pop("on_load_checkpoint", None)
        self.finetuning.detach(trainer, pl_module)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave behind a float module with the weights as they are; checkpoints written now still resume."""
        self.teardown(trainer, pl_module, "fit")

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
        """See where the fit stands."""
        self.finetuning.start(trainer)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn the float model into one that is fine-tuned, if it is time."""
        if self.finetuning.is_due(trainer):
            self.finetuning.finish_float(trainer, pl_module)
            with at_work(trainer, self.pipeline):
                batches = batches_in_fit(trainer, pl_module, self.calibration_batches)
                self.policy, bench = self._decide(trainer, pl_module, batches)
                codes, repair = bench.codes(self.policy), bench.repair
                self.finetuning.begin(trainer, pl_module, self.policy, codes, repair.apply)
        elif self.finetuning.reallocation_is_due(trainer):
            with at_work(trainer, self.pipeline):
                batches = batches_in_fit(trainer, pl_module, self.calibration_batches)
                self.policy = self.finetuning.reallocate(trainer, pl_module, self.pipeline, batches)
        self.finetuning.before_epoch(trainer)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the learning rates of fine-tuning."""
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
        if self.finetuning.phase == "training":
            self._finish(trainer, pl_module)
            return
        if self.finetuning.wanted:
            rank_zero_warn(
                "The fit ended before fine-tuning could begin (max_time, or no training batches), so the model is "
                "quantized without it.",
                category=UserWarning,
            )
        batches = partial(batches_in_fit, trainer, pl_module, self.calibration_batches)
        self._run(trainer, pl_module, batches, lambda: validation_metrics(trainer, pl_module))

    def quantize_trained(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> Outcome | None:
        """Do at once, on a model that is trained already, what the callback does at the end of fit.

        There is no fine-tuning here: for that, fit a trained module with ``quantize_at=0``.

        Args:
            trainer: Gives device, progress bar, loggers and validation; need not have this callback.
            pl_module: The trained float module; quantized in place.
            datamodule: The data; by default the module's own loaders.

        Returns:
            What was found, or None where the plan was given; the attributes of the callback are set as well.
        """
        refuse_several_processes(trainer.strategy)
        if datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("fit")
        loader = calibration_loader(trainer, pl_module, datamodule)
        pl_module.to(trainer.strategy.root_device)

        def evaluate() -> dict[str, float]:
            metrics = validation_metrics(trainer, pl_module, datamodule)
            pl_module.to(trainer.strategy.root_device)  # trainer.validate leaves the module on the CPU
            return metrics

        with alone():  # whatever other processes do, such as those of a fit that is over
            return self._run(trainer, pl_module, lambda: list(islice(loader, self.calibration_batches)), evaluate)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return plan and phase as text and tensors, which ``torch.load(weights_only=True)`` opens."""
        state: dict[str, Any] = {} if self.policy is None else {"policy": self.policy.to_json()}
        if self.finetuning.wanted and self.finetuning.phase != "over":
            state["finetuning"] = self.finetuning.state()
            state["budget"] = plain_budget(self.pipeline.budget)
            if self.report is not None:
                state["report"] = json.dumps(self.report.to_dict())
        return state

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take plan and verdict from a checkpoint; `FinetunePhase.load` takes the phase, before the weights."""
        if "policy" in state_dict:
            self.policy = BitPolicy.from_json(state_dict["policy"])
        if "report" in state_dict:
            self.report = Report.from_dict(json.loads(state_dict["report"]))

    def _before_loading(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        stage: str,
        own_hook: Callable[[dict[str, Any]], None],
        checkpoint: dict[str, Any],
    ) -> None:
        """Make model and Trainer fit the checkpoint that is about to be loaded."""
        policy = policy_in_checkpoint(checkpoint)
        if policy is not None and stage == "fit":
            raise ValueError(
                "The checkpoint holds a packed model, which cannot be trained on. Fit from a checkpoint of the float "
                "model, or validate, test and predict with this one."
            )
        if policy is not None and not packed_layers(pl_module):
            empty_packed_model(pl_module, policy)
        if stage == "fit":
            state = callback_state(checkpoint) or {}
            refuse_another_plan(state, self.given_policy, self.pipeline.budget)
            self.finetuning.load(trainer, pl_module, checkpoint, state.get("finetuning"))
        own_hook(checkpoint)

    def _decide(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batches: list[Any]
    ) -> tuple[BitPolicy, Workbench]:
        """Return the plan, measured or given, and what is known of the float model, which is left as it was."""
        share_buffers(pl_module)  # BatchNorm statistics differ from process to process
        pipeline, policy = self.pipeline, self.given_policy
        if policy is not None:
            layers = list(policy.by_layer())
            return policy, Workbench(
                pl_module, batches, layers, options=pipeline.repair, forward_fn=pipeline.forward_fn
            )
        plan = pipeline.plan(pl_module, batches)
        self.taylor, self.allocation = plan.taylor, plan.allocation
        if self.verdict:
            self.report = pipeline.judge(plan, lambda: validation_metrics(trainer, pl_module))
        return plan.allocation.policy, plan.bench

    def _run(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Callable[[], list[Any]],
        evaluate: Callable[[], Mapping[str, float]],
    ) -> Outcome | None:
        """Quantize a float model by its loss, or as a given plan says, and tell everybody."""
        with at_work(trainer, self.pipeline):
            if self.given_policy is not None:
                share_buffers(pl_module)
                forward_fn = self.pipeline.forward_fn
                quantize(pl_module, self.given_policy, batches(), repair=self.pipeline.repair, forward_fn=forward_fn)
                self.policy = self.given_policy
                return None
            outcome = self.pipeline.run(pl_module, batches(), evaluate if self.verdict else None)
        self.taylor, self.allocation, self.report = outcome.taylor, outcome.allocation, outcome.report
        self.policy = outcome.allocation.policy
        if outcome.report is not None:
            publish(trainer, outcome.report, self.report_path)
        return outcome

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pack what was fine-tuned, measure it, and tell everybody."""
        share_buffers(pl_module)  # BatchNorm statistics differ from process to process
        floats = self.finetuning.pack(pl_module)
        try:
            with at_work(trainer, self.pipeline):
                if self.report is not None:
                    row = finetuned_row(pl_module, mean_over_ranks(validation_metrics(trainer, pl_module)))
                    rows = (*self.report.models, row)
                    self.report = replace(self.report, models=rows, reallocations=self.finetuning.reallocations)
        except BaseException:
            restore_layers(pl_module, floats)
            raise
        if self.report is not None:
            publish(trainer, self.report, self.report_path)
