"""The verb `estimate`: bytes and minutes of every stage of a job, before any of it is done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..allocation import Budget
from ..curvature.draws import draws_a_chunk
from ..curvature.estimators.fisher import Fisher
from ..curvature.estimators.registry import estimator_named
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..network.calibration import Calibration
from ..network.evaluator import check_finite_parameters
from ..network.forward import ForwardFn, LossFn
from ..network.named_weights import named_layers
from ..options import CandidateOptions, CurvatureOptions, RepairOptions, SelectionOptions
from ..repair.repair import reestimates
from ..rounding.independent import moment_room
from ..rounding.weight_rounding import SAMPLED_WEIGHTS, grids_apart
from ..targets import Target, offer, target_named
from ..tools.kinds import checked_kinds
from ..tools.process_wide import quiet
from ..tools.room import gigabytes
from .disk_bytes import disk_bytes
from .dry_run import Passes, Speeds, passes_over, speeds
from .settings import JobSettings
from .stage_bytes import PASS_BYTES, Sizes, library_bytes


@dataclass(frozen=True)
class StageEstimate:
    """What a stage is expected to take.

    Attributes:
        name: "round", "profile", "allocate", "quantize" or "select".
        bytes: The most memory, the float model included.
        minutes: Its time, roughly.
    """

    name: str
    bytes: int
    minutes: float


@dataclass(frozen=True)
class Estimate:
    """What a job is expected to take; printed, it is a sentence.

    Attributes:
        stages: Each stage, in order.
        model_bytes: Parameters and buffers of the float model.
        disk_bytes: The most that is written of rounded weights under ``cache_dir``; 0 without one.
        largest_layer: Name of the layer with the largest moment of inputs; None if none is made.
        moment_bytes: What that moment takes.
    """

    stages: tuple[StageEstimate, ...]
    model_bytes: int
    disk_bytes: int
    largest_layer: str | None
    moment_bytes: int

    @property
    def bytes(self) -> int:
        """The most memory of any stage, the float model included."""
        return max(stage.bytes for stage in self.stages)

    @property
    def minutes(self) -> float:
        """Minutes of all stages, roughly."""
        return sum(stage.minutes for stage in self.stages)

    def __str__(self) -> str:
        """Return it in one sentence."""
        largest = max(self.stages, key=lambda stage: stage.bytes)
        minutes = max(1, round(self.minutes))
        disk = f", {gigabytes(self.disk_bytes)} on disk" if self.disk_bytes else ""
        return (
            f"about {minutes} minute{'s' * (minutes > 1)}, {gigabytes(self.bytes)} at most ({largest.name}; the float "
            f"model is {gigabytes(self.model_bytes)} of it){disk}"
        )


@checked_kinds
def estimate(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    *,
    candidates: CandidateOptions | None = None,
    curvature: CurvatureOptions | None = None,
    repair: RepairOptions | None = None,
    selection: SelectionOptions | None = None,
    target: Target | str = "torch",
    forward_fn: ForwardFn | None = None,
    loss_fn: LossFn | None = None,
    cache_dir: str | Path | None = None,
) -> Estimate:
    """Say what a job would take, by one forward and one backward pass of its first batch and a few rounded rows.

    Memory is that of tensors, and of libraries while they work; what the interpreter takes before comes on top.
    Minutes are rough: they do not know what else the machine does.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches, at least one.
        candidates: What may be quantized, and how.
        curvature: How the loss is measured.
        repair: What makes up for rounding.
        selection: Whether several policies are measured.
        target: The runtime that the policy is for.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        loss_fn: ``(model, batch) -> scalar``, for the task loss.
        cache_dir: Folder where rounded candidates will be kept; without one they stay in memory.

    Returns:
        Bytes and minutes of every stage.

    Raises:
        ValueError: If there is no batch, nothing can be quantized, or weights have no values or lie on several devices.
        NonFiniteError: If a weight is NaN or infinite.

    Example:
        >>> net, data = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(64, 8)
        >>> from lightning_mpq import Categorical, CurvatureOptions
        >>> found = estimate(net, data.split(16), curvature=CurvatureOptions(likelihood=Categorical()))
        >>> [stage.name for stage in found.stages], found.model_bytes
        (['round', 'profile', 'allocate', 'quantize', 'select'], 848)
    """
    options = curvature or CurvatureOptions()
    settings = JobSettings(
        budget=Budget(average_bits=8.0),
        candidates=candidates or CandidateOptions(),
        curvature=options,
        selection=selection or SelectionOptions(),
        repair=repair or RepairOptions(),
        forward_fn=forward_fn,
        loss_fn=loss_fn,
        target=target_named(target),
        cache_dir=cache_dir,
    )
    known = options.known_likelihood
    calibration = Calibration.of(model, batches, forward_fn=forward_fn, loss_fn=loss_fn, likelihood=known)
    return estimate_job(calibration.listed("an estimate"), settings)


@torch.inference_mode(False)  # its caller may evaluate
def estimate_job(calibration: Calibration, settings: JobSettings) -> Estimate:
    """Say what a job would take; see `estimate`."""
    model = calibration.model
    check_finite_parameters(model)
    with quiet():
        groups, candidates = offer(settings.target, model, settings.candidates)
    batches = list(calibration.filled())
    largest = max(groups, key=lambda group: group.weight_count)
    layers = named_layers(model, remove_duplicate=False)
    own = [candidate.scheme.weight for candidate in candidates if candidate.group == largest.name]
    passes = passes_over(calibration, groups, candidates, settings.curvature.chunk_size, batches[0])
    sizes = Sizes.of(model, groups, candidates, moment_room([layers[n] for g in groups for n in g.layers]))
    kept = sizes.stored_bytes if settings.cache_dir is None else 0
    speed = speeds(layers[largest.layers[0]], list(dict.fromkeys(own)))
    seconds = _seconds(settings, sizes, passes, speed, batches, groups, candidates)
    held = (passes.held_bytes + PASS_BYTES) * len(batches)
    quantize = sizes.quantize_bytes(held, settings.repair.sequential)
    bytes_of = {
        "round": sizes.round_bytes(passes.forward_bytes) + kept,
        "profile": sizes.profile_bytes(passes.backward_bytes) + kept,
        "allocate": sizes.allocate_bytes() + kept,
        "quantize": quantize + kept,
        "select": max(quantize, sizes.select_bytes(held)) + kept,
    }
    overhead = library_bytes(model)
    stages = [StageEstimate(n, sizes.model_bytes + size + overhead, seconds[n] / 60) for n, size in bytes_of.items()]
    if not settings.selection.measures:
        stages = stages[:-1]
    disk = disk_bytes(model, groups, candidates, settings)
    return Estimate(tuple(stages), sizes.model_bytes, disk, sizes.widest, sizes.moment_bytes)


def _seconds(
    settings: JobSettings,
    sizes: Sizes,
    passes: Passes,
    speed: Speeds,
    batches: Sequence[Any],
    groups: Sequence[LayerGroup],
    candidates: Sequence[Candidate],
) -> dict[str, float]:
    """Return the seconds of each stage."""
    forward, count = passes.forward_seconds * len(batches), len(candidates)
    schemes = count / len(groups)
    chosen = schemes / grids_apart([candidate.scheme.weight for candidate in candidates])
    draws = settings.curvature.draws or (draws_a_chunk(batches) if reestimates(sizes.model, settings.repair) else 1)
    backward = passes.backward_seconds * (1 + draws) / 2
    if not isinstance(estimator_named(settings.curvature.estimator), Fisher):
        backward = passes.forward_seconds * count
    sampled = min(SAMPLED_WEIGHTS * len(groups), sizes.weights)
    cubes = sizes.cubes * speed.product_seconds
    rounding = speed.round_seconds * (chosen * sizes.weights + schemes * sampled) + cubes
    in_turn = 2 * forward + 3 * cubes + speed.round_seconds * sizes.weights
    found = {
        "round": 2 * forward * ceil(sizes.all_moments / sizes.room) + rounding,
        "profile": len(batches) * (backward + 2 * speed.change_seconds * chosen * sizes.weights),
        "allocate": min(settings.solver.time_limit, 2e-5 * count**2),
        "quantize": in_turn if settings.repair.sequential else forward,
    }
    found["select"] = settings.selection.policies * (2 * forward + speed.change_seconds * sizes.weights)
    return found
