"""One job on a pretrained network: its policies side by side on unseen samples, and what each stage takes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from math import floor
from pathlib import Path
from typing import Any

from lightning_mpq import (
    BitPolicy,
    Budget,
    CandidateOptions,
    CurvatureOptions,
    RepairOptions,
    SelectionOptions,
    find_groups,
    make_candidates,
    round_candidates,
)
from lightning_mpq.modules import stored_bytes
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.settings import JobSettings
from lightning_mpq.pipeline.temporary_packing import temporarily_packed

from ...problems.subjects import Subject
from ...problems.unseen import Unseen
from ...tools.results import Row
from .stages import MeasuredStages

WITHOUT: dict[str, dict[str, Any]] = {
    "nothing": {},
    "sequence": {"repair": RepairOptions(sequential=False)},
    "repair": {"repair": RepairOptions(batchnorm=False, biases=False)},
    "selection": {"selection": SelectionOptions(policies=1, rounds=0)},
    "shrinkage": {"curvature": {"shrink": False}},
    "blocks": {"candidates": CandidateOptions(granularities=("channel",))},
}
"""What is switched off, to the settings that do it."""


def measure(subject: Subject, budget: float, without: str, cache: Path) -> Iterator[Row]:
    """Yield a row for each model of a job's comparison, and one for the same width everywhere, rounded to nearest.

    Args:
        subject: What is quantized; left as it was.
        budget: Average bits.
        without: What is switched off, of `WITHOUT`.
        cache: Folder for rounded candidates and profiles, which jobs on the same samples share.
    """
    settings = dict(WITHOUT[without])
    curvature = CurvatureOptions(likelihood=subject.likelihood, **settings.pop("curvature", {}))
    packed = subject._replace(model=copy.deepcopy(subject.model))  # it ends packed, fitted to all samples
    timer, unseen = MeasuredStages(), Unseen(packed)
    job = Pipeline(JobSettings(Budget(budget), curvature=curvature, cache_dir=cache, **settings), timer)
    decision = job.decide(packed.model, subject.calibration)
    report = job.compare(decision, unseen, keep=True).to_dict()
    timer.seconds["compare"] -= unseen.seconds
    timer.processor["compare"] -= unseen.processor
    for model in report["models"]:
        own = model["metrics"]
        row: Row = {
            "model": model["name"].split()[0],
            "average_bits": model["average_bits"],
            "stored_bytes": model["stored_bytes"],
            "predicted_loss": model["predicted_loss"],
            "calibration_loss": model.get("fitted_loss", model["measured_loss"]),
            "held_out_loss": model["measured_loss"] if "fitted_loss" in model else None,
            **own,
        }
        if model["name"] == "chosen":
            row |= {
                "kept": next((trial["policy"] for trial in report["trials"] if trial["kept"]), "solved"),
                "repaired": report["repair"][-1] if report["repair"] else None,
                "between": report["pairs"],
                "seconds": _rounded(timer.seconds),
                "processor_seconds": _rounded(timer.processor),
                "peak_mib": {stage: round(peak / 2**20) for stage, peak in timer.peaks.items()},
            }
        yield row
    if without == "nothing":
        yield nearest(subject, floor(budget + 0.5), Unseen(subject))


def nearest(subject: Subject, bits: int, unseen: Unseen) -> Row:
    """Return the row of one width everywhere, rounded to nearest with a scale a channel, and nothing repaired."""
    groups = find_groups(subject.model, batches=subject.calibration[:1])
    offered = make_candidates(groups, [bits], rounding="nearest", granularities=("channel",))
    rounded = round_candidates(subject.model, (), groups, offered)
    layers = {group.name: group.layers for group in groups}
    policy = BitPolicy({candidate.group: candidate.scheme for candidate in rounded.candidates}, layers)
    with temporarily_packed(subject.model, policy, rounded.of_policy(policy)):
        stored = stored_bytes(subject.model)
        found = unseen()
    weights = sum(group.weight_count for group in groups)
    return {
        "model": "nearest",
        "average_bits": 8 * stored.packed / weights,
        "stored_bytes": stored.total,
        **found,
    }


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
