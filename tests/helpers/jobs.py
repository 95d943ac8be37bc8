"""Whole jobs without a Trainer."""

from typing import Any

from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.profiling import Profiled, measure
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.tools.progress import Progress, StageTimer, silent


def make_job(budget: Budget | float, progress: Progress = silent, **settings: Any) -> Pipeline:
    budget = budget if isinstance(budget, Budget) else Budget(average_bits=budget)
    return Pipeline(JobSettings(budget, **settings), StageTimer(progress))


def profiled(job: Pipeline, model: nn.Module, batches: Any) -> Profiled:
    return measure(job.calibration(model, batches), job.settings, job.timer)
