"""What the callback does when its time has come: decide, quantize, judge, publish, and see to checkpoints."""

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
from typing_extensions import override

from ..allocation import Allocation
from ..curvature import TaylorModel
from ..modules import empty_packed_model, packed_layers, restore_layers
from ..pipeline.pipeline import Outcome, Pipeline
from ..pipeline.preflight import rehearse_call, rehearse_plan
from ..policy import BitPolicy
from ..report import Report
from ..tools.distributed import alone, mean_over_ranks, share_buffers
from .checkpoints.checkpoint import callback_state, policy_in_checkpoint
from .finetuning.phase import FinetunePhase
from .finetuning.plans import plain_budget, refuse_another_plan
from .logging import finetuned_row, publish
from .strategies import refuse_several_processes
from .trainer_tools import (
    calibration_loader,
    own_calibration_loader,
    validation_metrics,
)
from .work import at_work, batches_in_fit


class QuantizationJob(Callback):
    """A callback that knows how to quantize; when to do it is left to its hooks in `MixedPrecisionQuantization`.

    Attributes:
        pipeline: Does the work on a model and its batches.
        finetuning: Where a fit stands.
        calibration_batches: How many batches to calibrate on, all processes together.
        given_policy: A plan to be followed; None to decide one.
        verdict: Whether float, uniform, additive and chosen model are measured and reported.
        report_path: File for the report, relative to the Trainer's log directory; None for no file.
        allocation: The plan with its certificate; None before it is decided.
        policy: The plan alone.
        taylor: The Taylor model behind the plan.
        report: The verdict.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        finetuning: FinetunePhase,
        calibration_batches: int,
        given_policy: BitPolicy | None,
        verdict: bool,
        report_path: str | Path | None,
    ) -> None:
        """Know what to do; nothing is decided yet."""
        super().__init__()
        self.pipeline, self.finetuning = pipeline, finetuning
        self.calibration_batches = calibration_batches
        self.given_policy = given_policy
        self.verdict, self.report_path = verdict, report_path
        self.allocation: Allocation | None = None
        self.policy: BitPolicy | None = given_policy
        self.taylor: TaylorModel | None = None
        self.report: Report | None = None

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
        rehearse_plan(pl_module, self.pipeline, self.given_policy)
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
            return self._quantize(trainer, pl_module, lambda: list(islice(loader, self.calibration_batches)), evaluate)

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
        self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str, checkpoint: dict[str, Any]
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

    def _quantize_in_fit(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Quantize the float model at the end of a fit."""
        batches = partial(batches_in_fit, trainer, pl_module, self.calibration_batches)
        self._quantize(trainer, pl_module, batches, partial(validation_metrics, trainer, pl_module))

    def _quantize(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Callable[[], list[Any]],
        evaluate: Callable[[], Mapping[str, float]],
    ) -> Outcome | None:
        """Quantize a float model by its loss, or as a given plan says, and tell everybody."""
        with at_work(trainer, self.pipeline):
            if self.given_policy is not None:
                self.pipeline.follow(pl_module, self.given_policy, batches()).pack(self.given_policy)
                self.policy = self.given_policy
                return None
            outcome = self.pipeline.run(pl_module, batches(), evaluate if self.verdict else None)
        self.taylor, self.allocation, self.report = outcome.taylor, outcome.allocation, outcome.report
        self.policy = outcome.allocation.policy
        if outcome.report is not None:
            publish(trainer, outcome.report, self.report_path)
        return outcome

    def _rehearse_plan(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse at the start of a fit, before any time is spent, a plan that cannot be made at its end."""
        if self.finetuning.phase == "float":
            rehearse_plan(pl_module, self.pipeline, self.given_policy)
            if not self._has_own_calibration(trainer, pl_module):
                calibration_loader(trainer, pl_module, None)

    def _rehearse_call(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any) -> None:
        """Refuse on the first batch of a fit what could not be calibrated on, where it is one of those."""
        own = self._has_own_calibration(trainer, pl_module)
        if self.finetuning.phase == "float" and not own and self.given_policy is None:
            rehearse_call(pl_module, batch, self.pipeline)

    def _has_own_calibration(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Tell whether calibration batches may look different from those of the training."""
        return own_calibration_loader(getattr(trainer, "datamodule", None), pl_module) is not None

    def _begin_finetuning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """End the float phase of a fit: decide the bits, and turn the model into one that is fine-tuned."""
        self.finetuning.finish_float(trainer, pl_module)
        with at_work(trainer, self.pipeline):
            batches = batches_in_fit(trainer, pl_module, self.calibration_batches)
            if self.given_policy is not None:
                self.policy, bench = self.given_policy, self.pipeline.follow(pl_module, self.given_policy, batches)
            else:
                plan = self.pipeline.plan(pl_module, batches)
                self.taylor, self.allocation = plan.taylor, plan.allocation
                if self.verdict:
                    self.report = self.pipeline.judge(plan, partial(validation_metrics, trainer, pl_module))
                self.policy, bench = plan.allocation.policy, plan.bench
            codes, repair = bench.codes(self.policy), bench.repair
            self.finetuning.begin(trainer, pl_module, self.policy, codes, repair.apply)
            self.finetuning.note_loss(pl_module, self.pipeline, batches)

    def _reallocate(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Decide the bits again on the way through fine-tuning."""
        with at_work(trainer, self.pipeline):
            batches = batches_in_fit(trainer, pl_module, self.calibration_batches)
            self.policy = self.finetuning.reallocate(trainer, pl_module, self.pipeline, batches)

    def _finish_finetuning(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pack what was fine-tuned, measure it, and tell everybody."""
        share_buffers(pl_module)  # BatchNorm statistics differ from process to process
        floats = self.finetuning.pack(pl_module)
        try:
            with at_work(trainer, self.pipeline):
                batches = partial(batches_in_fit, trainer, pl_module, self.calibration_batches)
                gain = self.finetuning.judge(pl_module, self.pipeline, batches)
                if self.report is not None:
                    row = finetuned_row(pl_module, mean_over_ranks(validation_metrics(trainer, pl_module)))
                    rows = (*self.report.models, row)
                    self.report = replace(
                        self.report, models=rows, reallocations=self.finetuning.reallocations, finetuning=gain
                    )
        except BaseException:
            restore_layers(pl_module, floats)
            raise
        if self.report is not None:
            publish(trainer, self.report, self.report_path)
