"""Whole jobs without a Trainer."""

from typing import Any

import torch
from torch import nn

from lightning_mpq.allocation import Budget
from lightning_mpq.pipeline.comparison import compared_policies
from lightning_mpq.pipeline.pipeline import Outcome, Pipeline
from lightning_mpq.pipeline.profiling import Profiled, measure
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.tools.progress import Progress, StageTimer, silent


def make_job(budget: Budget | float, progress: Progress = silent, **settings: Any) -> Pipeline:
    budget = budget if isinstance(budget, Budget) else Budget(average_bits=budget)
    return Pipeline(JobSettings(budget, **settings), StageTimer(progress))


def profiled(job: Pipeline, model: nn.Module, batches: Any) -> Profiled:
    return measure(job.calibration(model, batches), job.settings, job.timer)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def distinct_plans(outcome: Outcome) -> int:
    """Return how many different plans a report is about."""
    policies = [*compared_policies(outcome.taylor, outcome.allocation).values(), outcome.allocation.policy]
    return len({policy.to_json() for policy in policies})


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16 + i, 6, generator=generator), torch.randint(3, (16 + i,), generator=generator))
        for i in range(count)
    ]
