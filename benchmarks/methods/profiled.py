"""Groups, rounded candidates and Taylor model as the callback finds them, for benchmarks that go on by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_mpq import Budget, CandidateOptions, Categorical, CurvatureOptions, RepairOptions
from lightning_mpq.network.calibration import Calibration
from lightning_mpq.pipeline.profiling import Profiled, measure
from lightning_mpq.pipeline.quantizer import Quantizer
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.tools.progress import StageTimer


def profiled(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    candidates: CandidateOptions,
    statistics: str = "auto",
    seed: int = 0,
) -> Profiled:
    """Return what is known of a classifier before any bits are assigned.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        candidates: What may be chosen.
        statistics: What BatchNorm normalises by while the loss is measured, as in `CurvatureOptions`.
        seed: Seed of the draws.
    """
    curvature = CurvatureOptions(statistics=statistics, seed=seed)  # type: ignore[arg-type]
    settings = JobSettings(Budget(average_bits=8.0), candidates, curvature)  # the budget plays no part here
    return measure(calibration(model, batches), settings, StageTimer())


def quantizer(model: nn.Module, batches: Sequence[Any], known: Profiled, repair: RepairOptions) -> Quantizer:
    """Return what packs a profiled model under one policy or another.

    Args:
        model: The float model.
        batches: Calibration batches.
        known: What `profiled` returned.
        repair: What is repaired.
    """
    layers = [layer for group in known.groups for layer in group.layers]
    return Quantizer(calibration(model, batches), layers, repair, known.rounded)


def calibration(model: nn.Module, batches: Sequence[Any]) -> Calibration:
    """Return the record of a classifier and its batches."""
    return Calibration(model, batches, likelihood=Categorical())
