"""A module's own validation, run without a trace in callbacks and loggers, and without harm if it fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import lightning as L
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torchmetrics import Metric

from ..network.modes import evaluating
from ..report.metric_values import MetricValues, intervals_of, joined
from ..tools.attributes import shadowed
from ..tools.clean_up import afterwards
from ..tools.distributed import gather, mean_over_ranks
from .batch_metrics import BatchMetrics
from .silent import silent_callback, silent_logger


@dataclass
class Validation:
    """Measures a module as it is by its own validation, as often as it is called.

    User code may fail where the fit itself is over. This costs the metrics and a warning, and no work: the policy and
    the packed model stay.

    Attributes:
        trainer: In its fit, or outside of one.
        module: What is validated.
        datamodule: Its data outside of a fit; by default the module's own.
        failed: Whether it has failed, and is left out from then on; on all processes if on one.
    """

    trainer: L.Trainer
    module: L.LightningModule
    datamodule: L.LightningDataModule | None = None
    failed: bool = field(default=False, init=False)

    def __call__(self) -> MetricValues:
        """Return metric name to value, with intervals; nothing if the module does not validate, or with an error."""
        if self.failed:
            return MetricValues({})
        found, error, noted = dict[str, float](), None, BatchMetrics()
        try:
            with evaluating(self.module):  # whose modes come back after an error too
                found = validation_metrics(self.trainer, self.module, self.datamodule, noted)
        except Exception as caught:  # whatever user code raises
            error = f"{type(caught).__name__}: {caught}"
        errors = [text for text in gather(error) if text is not None]
        if not errors:
            return MetricValues(found, intervals_of(mean_over_ranks(found), joined(gather(noted.batches))))
        self.failed = True
        for part in self.module.modules():
            if isinstance(part, Metric):
                part.reset()  # of what the validation that failed has left in it
        rank_zero_warn(
            f"Validation failed when models were compared, so the report has no metrics ({errors[0]}). Quantization "
            "goes on without them; compare=False leaves the comparison out.",
            category=UserWarning,
        )
        return MetricValues({})


def validation_metrics(
    trainer: L.Trainer,
    module: L.LightningModule,
    datamodule: L.LightningDataModule | None = None,
    observer: L.Callback | None = None,
) -> dict[str, float]:
    """Run the module's validation and return what it logged, without a trace in callbacks and loggers.

    At the end of a fit the fit's own validation loop runs, on its own loaders (``trainer.validate`` would unwrap
    the model of a fit that is not over yet); otherwise ``trainer.validate``. Other callbacks do not see it: the
    models that are compared must not become anybody's best checkpoint, or stop a training early. ``observer`` alone
    does.

    Returns:
        Metric name to value; empty if the module does not validate, or has no validation data.
    """
    in_fit = trainer.state.fn == TrainerFn.FITTING and trainer.state.stage is not None
    if not (trainer.enable_validation if in_fit else _validates(trainer, module, datamodule)):
        return {}
    with _unseen(trainer, [] if observer is None else [observer]):
        if not in_fit:
            with shadowed(module, configure_callbacks=list):  # none: a new one would not be silent
                results = trainer.validate(module, datamodule=datamodule, verbose=False)
        else:
            stage = trainer.state.stage
            with afterwards(lambda: setattr(trainer.state, "stage", stage)):
                trainer.state.stage = RunningStage.VALIDATING
                results = trainer.fit_loop.epoch_loop.val_loop.run()
    return {name: float(value) for result in results for name, value in result.items()}


def _validates(trainer: L.Trainer, module: L.LightningModule, datamodule: L.LightningDataModule | None) -> bool:
    """Tell outside of a fit what ``trainer.enable_validation`` tells within."""
    has_data = is_overridden("val_dataloader", module if datamodule is None else datamodule)
    return has_data and is_overridden("validation_step", module) and trainer.limit_val_batches > 0


@contextmanager
def _unseen(trainer: L.Trainer, observers: Sequence[L.Callback]) -> Iterator[None]:
    """Silence callbacks and loggers of the Trainer for a while, and hide from them afterwards what was logged in it."""
    before = {"callbacks": trainer.callbacks, "loggers": trainer.loggers}  # type: ignore[attr-defined]
    connector = trainer._logger_connector
    kept = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
    metrics = {name: dict(getattr(connector, name)) for name in kept}

    def restore() -> None:
        for name, value in before.items():
            setattr(trainer, name, value)
        for name, values in metrics.items():
            setattr(connector, name, values)

    with afterwards(restore):
        silenced = [silent_callback(each) for each in before["callbacks"]]
        trainer.callbacks = [*silenced, *observers]  # type: ignore[attr-defined]
        trainer.loggers = [silent_logger(each) for each in before["loggers"]]
        yield
