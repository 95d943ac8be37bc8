"""A job within Lightning's Trainer: its calibration batches, its validation, its progress bar, its loggers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden

from ..modules import restore_layers
from ..network.batches import to_device
from ..network.calibration import Calibration
from ..pipeline.estimate import estimate_job
from ..pipeline.pipeline import Outcome, Pipeline, metrics_over_ranks
from ..pipeline.planning import Decision
from ..pipeline.preflight import check_budget_of, check_call, check_policy
from ..pipeline.quantizer import Quantizer
from ..policy import BitPolicy
from ..report.metric_values import MetricValues
from ..report.records import Report
from ..tools.clean_up import after_errors
from ..tools.distributed import alone, rank, share_buffers, world_size
from .calibration_data import (
    batches_in_fit,
    batches_outside_of_fit,
    calibration_loader,
    has_own_calibration,
    is_stream,
)
from .finetuning.phase import FinetunePhase
from .logging import finetuned_row, publish
from .progress_bar import working
from .strategies import cuts_parameters, make_whole, refuse_several_processes
from .validation import Validation

Metrics = Callable[[], Mapping[str, float]]
_LARGE = 2**20
"""Parameters from which it is worth a pass to say beforehand what a job takes."""


@dataclass(frozen=True)
class QuantizationJob:
    """Quantizes the model of a Trainer.

    Attributes:
        pipeline: Does the work on a model and its batches.
        calibration_batches: How many batches to calibrate on, all processes together.
        policy: A policy to be followed; None to decide one.
        compare: Whether float, uniform, additive and chosen model are measured and reported.
        report_path: File for the report, relative to the Trainer's log directory, with the page ``report.html`` beside
            it; None for no file.
        kept: The first batches of a fit that trains on a stream.
    """

    pipeline: Pipeline
    calibration_batches: int
    policy: BitPolicy | None
    compare: bool
    report_path: str | Path | None
    kept: list[Any] = field(default_factory=list, compare=False, repr=False)

    def check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Refuse at the start of a fit, before any time is spent, a job that cannot be done at its end.

        A model whose parameters are cut is looked at when it is whole again.
        """
        if not cuts_parameters(trainer.strategy):
            self._check_policy(module)
        self.kept.clear()
        if not has_own_calibration(trainer, module):
            calibration_loader(trainer, module, None)

    def _check_policy(self, module: L.LightningModule) -> None:
        coverage = check_policy(module, self.pipeline.settings, self.policy, budget=False)
        if coverage is not None:
            rank_zero_info(f"MixedPrecisionQuantization: {coverage} will be quantized.")

    def check_batch(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        """Refuse on the first batch a budget that nothing keeps, and a call that fails if it is one of those."""
        if cuts_parameters(trainer.strategy):
            return
        if not has_own_calibration(trainer, module):
            self._check_call(module, batch)
        if self.policy is None:
            check_budget_of(self.pipeline.calibration(module, [batch]), self.pipeline.settings)

    def keep_batch(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        """Keep the first batches of a stream, which may have no second beginning, to calibrate on."""
        enough = len(self.kept) * world_size() >= self.calibration_batches
        if not enough and is_stream(trainer.train_dataloader) and not has_own_calibration(trainer, module):
            self.kept.append(to_device(batch, torch.device("cpu")))

    def run_in_fit(self, trainer: L.Trainer, module: L.LightningModule) -> Outcome | None:
        """Quantize the float model at the end of a fit; see `run`."""
        make_whole(trainer)
        return self.run(trainer, module, partial(self._batches, trainer, module), Validation(trainer, module))

    def run_on_trained(
        self, trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None
    ) -> Outcome | None:
        """Quantize a model that is trained already, outside of a fit; see `run`."""
        refuse_several_processes(trainer.strategy)
        if is_overridden("configure_model", module):
            module.configure_model()  # as Lightning does at the start of everything; layers may be made there only
        trainer.precision_plugin.convert_module(module)
        check_policy(module, self.pipeline.settings, self.policy, budget=False)
        if datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("fit")
        module.to(trainer.strategy.root_device)

        validation = Validation(trainer, module, datamodule)

        def metrics() -> MetricValues:
            found = validation()
            module.to(trainer.strategy.root_device)  # trainer.validate leaves the module on the CPU
            return found

        with alone():  # whatever other processes do, such as those of a fit that is over
            batches = batches_outside_of_fit(trainer, module, datamodule, self.calibration_batches, self._seed)
            for batch in batches[:1]:
                self._check_call(module, batch)
            if self.policy is None:
                check_budget_of(self.pipeline.calibration(module, batches[:1]), self.pipeline.settings)
            return self.run(trainer, module, lambda: batches, metrics)

    def run(
        self, trainer: L.Trainer, module: L.LightningModule, batches: Callable[[], list[Any]], metrics: Metrics
    ) -> Outcome | None:
        """Quantize a float model in place by its loss, or as a given policy says, and publish the report.

        Returns:
            What was found; None where the policy was given.
        """
        with working(trainer, self.pipeline.timer):
            if self.policy is not None:
                self.pipeline.follow(module, self.policy, batches()).pack(self.policy)
                return None
            found = batches()
            self._say_what_it_takes(module, found)
            outcome = self.pipeline.run(module, found, metrics if self.compare else None)
        if outcome.report is not None:
            publish(trainer, outcome.report, self.report_path)
        return outcome

    def _say_what_it_takes(self, module: L.LightningModule, batches: list[Any]) -> None:
        """Log memory and minutes of a large model's job before it begins; an error is left to the job itself."""
        large = sum(parameter.numel() for parameter in module.parameters()) >= _LARGE
        if not (large and batches and rank() == 0):
            return
        with suppress(Exception):
            found = estimate_job(self.pipeline.calibration(module, batches), self.pipeline.settings)
            rank_zero_info(f"MixedPrecisionQuantization: {found}")

    def begin_finetuning(
        self, trainer: L.Trainer, module: L.LightningModule, finetuning: FinetunePhase
    ) -> tuple[Decision | None, Report | None]:
        """End the float phase of a fit: decide the bits, and turn the model into one that is fine-tuned.

        Returns:
            The decision, and the comparison if it is wanted; None where the policy was given.
        """
        finetuning.finish_float(trainer, module)
        decision, report = None, None
        with working(trainer, self.pipeline.timer):
            batches = self._batches(trainer, module)
            quantizer: Quantizer
            if self.policy is not None:
                policy, quantizer = self.policy, self.pipeline.follow(module, self.policy, batches)
                quantizer.settle_statistics(policy)
            else:
                self._say_what_it_takes(module, batches)
                decision = self.pipeline.decide(module, batches)
                if self.compare:
                    report = self.pipeline.compared(decision, Validation(trainer, module))
                else:
                    decision.settle()
                policy, quantizer = decision.allocation.policy, decision.fitted_to_all()
            codes, ranges = quantizer.codes(policy), quantizer.ranges(policy)
            finetuning.begin(trainer, module, quantizer.resolved(policy), codes, quantizer.repair.apply, ranges)
            finetuning.note_loss(module, self.pipeline.calibration(module, batches))
        return decision, report

    def finish_finetuning(
        self, trainer: L.Trainer, module: L.LightningModule, finetuning: FinetunePhase, report: Report | None
    ) -> Report | None:
        """Pack what was fine-tuned, measure it, and publish the report; on an error the model is a float one."""
        share_buffers(module)  # BatchNorm statistics differ from process to process
        floats = finetuning.pack(module)

        def calibration() -> Calibration:
            return self.pipeline.calibration(module, self._batches(trainer, module))

        with after_errors(lambda: restore_layers(module, floats)), working(trainer, self.pipeline.timer):
            gain = finetuning.finished(module, calibration)
            if report is not None:
                row = finetuned_row(module, metrics_over_ranks(Validation(trainer, module)))
                report = replace(report, models=(*report.models, row), finetuning=gain)
        if report is not None:
            publish(trainer, report, self.report_path)
        return report

    def _batches(self, trainer: L.Trainer, module: L.LightningModule) -> list[Any]:
        found = batches_in_fit(trainer, module, self.calibration_batches, self._seed)
        found = found or [to_device(batch, trainer.strategy.root_device) for batch in self.kept]
        if not found and world_size() == 1:
            raise ValueError(
                "The training data gave no batch to calibrate on when it was gone through once more (a stream that "
                "yields once?). Define calibration_dataloader() on the datamodule or the module."
            )
        return found

    def _check_call(self, module: L.LightningModule, batch: Any) -> None:
        check_call(self.pipeline.calibration(module, [batch]), self.pipeline.settings, self.policy)

    @property
    def _seed(self) -> int:
        """Seed of the draw of calibration batches."""
        return self.pipeline.settings.curvature.seed
