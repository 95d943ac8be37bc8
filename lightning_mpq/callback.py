"""The callback: a Trainer's fit ends with a packed mixed-precision model and the verdict on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from typing_extensions import override

from .allocation import Allocation, Budget
from .calling import ForwardFn
from .curvature import TaylorModel
from .curvature.evaluator import LossFn
from .distributed import alone
from .export.checkpoint import policy_in_checkpoint
from .modules import empty_packed_model, packed_layers
from .options import CandidateOptions, CurvatureOptions, RepairOptions, SolverOptions
from .pipeline import Outcome, Pipeline
from .policy import BitPolicy
from .report import Report, print_report
from .strategies import refuse_several_processes, refuse_unsupported, share_of_batches
from .trainer_tools import progress_bar, validation_metrics


class MixedPrecisionQuantization(Callback):
    """Quantize the model at the end of fit, each layer to the bits that the loss asks for.

    After the last training epoch the callback measures a second-order Taylor model of the loss on calibration
    batches, assigns bits under the budget by an integer program, replaces the layers by packed ones,
    re-estimates BatchNorm statistics, and validates float, uniform, additive and chosen model side by side.
    Training itself is not touched. One device, CPU or GPU, or several under ``strategy="ddp"``: each process then
    measures its share of the calibration batches, one of them solves, and all pack the same model.

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
        verdict: Whether float, uniform, additive and chosen model are measured and reported.
        report_path: File for the report, relative to the Trainer's log directory; None for no file.
        cache_dir: Folder where Taylor models are kept, so that another budget on the same weights, candidates
            and data profiles nothing again; None for no cache.

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
            cache_dir=cache_dir,
        )
        self.calibration_batches = calibration_batches
        self.verdict = verdict
        self.report_path = report_path
        self.allocation: Allocation | None = None
        self.policy: BitPolicy | None = None
        self.taylor: TaylorModel | None = None
        self.report: Report | None = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work before any time is spent, and make ready for a packed checkpoint."""
        refuse_unsupported(trainer.strategy)
        if stage == "fit":
            self._refuse_averaging_behind_us(trainer)
        # A callback learns its state only after the weights are loaded; the module's own hook comes before.
        pl_module.__dict__["on_load_checkpoint"] = partial(
            self._pack_before_loading, pl_module, stage, pl_module.on_load_checkpoint
        )

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the module its own hook back."""
        pl_module.__dict__.pop("on_load_checkpoint", None)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do the whole job while the Trainer's device, precision and loaders are still there."""
        loader = self._calibration_loader(trainer, pl_module, getattr(trainer, "datamodule", None))

        def batches() -> list[Any]:
            own = share_of_batches(loader, self.calibration_batches)
            return [trainer.strategy.batch_to_device(batch) for batch in own]

        self._run(trainer, pl_module, batches, lambda: validation_metrics(trainer, pl_module))

    def quantize_trained(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: L.LightningDataModule | None = None
    ) -> Outcome:
        """Do at once, on a model that is trained already, what the callback does at the end of fit.

        Args:
            trainer: Gives device, progress bar, loggers and validation; need not have this callback.
            pl_module: The trained float module; quantized in place.
            datamodule: The data; by default the module's own loaders.

        Returns:
            What was found; the attributes of the callback are set as well.
        """
        refuse_several_processes(trainer.strategy)
        if datamodule is not None:
            datamodule.prepare_data()
            datamodule.setup("fit")
        loader = self._calibration_loader(trainer, pl_module, datamodule)
        pl_module.to(trainer.strategy.root_device)

        def evaluate() -> dict[str, float]:
            metrics = validation_metrics(trainer, pl_module, datamodule)
            pl_module.to(trainer.strategy.root_device)  # trainer.validate leaves the module on the CPU
            return metrics

        with alone():  # whatever other processes do, such as those of a fit that is over
            return self._run(trainer, pl_module, lambda: list(islice(loader, self.calibration_batches)), evaluate)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the policy as JSON text: plain values, which ``torch.load(weights_only=True)`` opens."""
        return {} if self.policy is None else {"policy": self.policy.to_json()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the policy from a checkpoint."""
        if "policy" in state_dict:
            self.policy = BitPolicy.from_json(state_dict["policy"])

    def _pack_before_loading(
        self,
        pl_module: L.LightningModule,
        stage: str,
        own_hook: Callable[[dict[str, Any]], None],
        checkpoint: dict[str, Any],
    ) -> None:
        """Replace layers by empty packed ones if the checkpoint about to be loaded holds such."""
        policy = policy_in_checkpoint(checkpoint)
        if policy is not None and stage == "fit":
            raise ValueError(
                "The checkpoint holds a packed model, which cannot be trained on. Fit from a checkpoint of the float "
                "model, or validate, test and predict with this one."
            )
        if policy is not None and not packed_layers(pl_module):
            empty_packed_model(pl_module, policy)
        own_hook(checkpoint)

    def _run(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batches: Callable[[], list[Any]],
        evaluate: Callable[[], Mapping[str, float]],
    ) -> Outcome:
        """Run the pipeline with the Trainer's progress bar, then tell the logger, the file and the user."""
        with isolate_rng(), progress_bar(trainer) as progress:
            self.pipeline.progress = progress
            outcome = self.pipeline.run(pl_module, batches(), evaluate if self.verdict else None)
        self.pipeline.progress = None
        self.taylor, self.allocation, self.report = outcome.taylor, outcome.allocation, outcome.report
        self.policy = outcome.allocation.policy
        if outcome.report is not None:
            self._publish(trainer, outcome.report)
        return outcome

    def _publish(self, trainer: L.Trainer, report: Report) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # which all processes must ask for
        if not trainer.is_global_zero:
            return
        scalars = {f"mpq/{name}": value for name, value in report.scalars().items()}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=trainer.global_step)
            logger.save()
        if self.report_path is not None:
            path = report.save(folder / self.report_path)
            rank_zero_info(f"MixedPrecisionQuantization: report written to {path}")
        if getattr(trainer.progress_bar_callback, "is_enabled", False):
            print_report(report)

    def _calibration_loader(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: L.LightningDataModule | None
    ) -> Iterable[Any]:
        for source in (datamodule, pl_module):
            own = getattr(source, "calibration_dataloader", None)
            if callable(own):
                return own()
        in_fit = trainer.training and trainer.train_dataloader is not None
        source = datamodule if datamodule is not None else pl_module
        loader = trainer.train_dataloader if in_fit else source.train_dataloader()
        if loader is None or isinstance(loader, (dict, list, tuple)):
            raise ValueError(
                "Calibration needs one loader of training batches, and train_dataloader gives "
                f"{type(loader).__name__}. Define calibration_dataloader() on the datamodule or the module."
            )
        return loader

    def _refuse_averaging_behind_us(self, trainer: L.Trainer) -> None:
        """Averages are written into the model at the end of training, which must come before quantization."""
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        for other in callbacks[callbacks.index(self) + 1 :]:
            if isinstance(other, (StochasticWeightAveraging, WeightAveraging)):
                raise ValueError(
                    f"{type(other).__name__} writes its averaged weights at the end of training and is listed after "
                    "MixedPrecisionQuantization, which would quantize the weights before. List it first."
                )
