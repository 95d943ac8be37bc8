"""What is known of a model before any bits are assigned: groups, rounded candidates, the Taylor model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..curvature import TaylorModel, profile
from ..curvature.silent_groups import silent_groups
from ..curvature.unseen import without_chance
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroups
from ..network.calibration import Calibration
from ..rounding.independent import round_candidates
from ..rounding.rounded_weights import RoundedWeights
from ..targets import offer
from ..tools.progress import Progress, StageTimer
from ..tools.progress import silent as silently
from .kept_rounding import KeptRounding
from .settings import JobSettings


@dataclass(frozen=True)
class Profiled:
    """What is known of a model before any bits are assigned.

    Attributes:
        groups: The groups, and what stays in float.
        rounded: Rounded weights of all candidates; None if all schemes are rounded to nearest.
        unshrunk: The Taylor model as it was measured.
        taylor: The Taylor model to be solved.
    """

    groups: LayerGroups
    rounded: RoundedWeights | None
    unshrunk: TaylorModel
    taylor: TaylorModel


def measure(
    calibration: Calibration, settings: JobSettings, timer: StageTimer, before: Profiled | None = None
) -> Profiled:
    """Find the groups, round their candidates and measure the Taylor model; the model is left as it was.

    Args:
        calibration: The float model and its batches.
        settings: What is wanted.
        timer: Times the stages.
        before: What was measured with other settings of the profile: its groups and candidates are taken.
    """
    model, curvature = calibration.model, settings.curvature
    if before is not None:
        groups, candidates, rounded = before.groups, before.unshrunk.candidates, before.rounded
    else:
        groups, candidates, rounded = _rounded(calibration, settings, timer)

    def profiled(progress: Progress) -> TaylorModel:
        return profile(
            model,
            calibration,
            groups=groups,
            candidates=candidates,
            rounded=rounded,
            estimator=curvature.estimator,
            loss=curvature.loss,
            statistics="reestimated" if settings.predicts_repaired(model) else "frozen",
            draws=curvature.draws,
            chunk_size=curvature.chunk_size,
            tolerance=curvature.tolerance,
            shrink=False,
            seed=curvature.seed,
            cluster=curvature.cluster,
            cache_dir=settings.cache_dir,
            progress=progress,
        )

    with timer.stage("profile"):
        unshrunk = profiled(timer.within(0.15, 0.4))
        if silent := silent_groups(unshrunk, model, rounded):
            groups = groups.without(model, silent, "no output reacts to it on the calibration batches")
            candidates = tuple(candidate for candidate in candidates if candidate.group not in silent)
            rounded = None if rounded is None else replace(rounded, candidates=candidates)
            unshrunk = profiled(silently)
    taylor = without_chance(unshrunk, rounded) if curvature.shrink else unshrunk
    return Profiled(groups, rounded, unshrunk, taylor)


def _rounded(
    calibration: Calibration, settings: JobSettings, timer: StageTimer
) -> tuple[LayerGroups, tuple[Candidate, ...], RoundedWeights | None]:
    """Find the groups and what they are offered, and round them."""
    model, options = calibration.model, settings.candidates
    groups, candidates = offer(settings.target, model, options, calibration if settings.calls_forward else None)
    # Of widths alone the best grid is searched, whatever the rounding; schemes that were named stay as they are.
    by_inputs = options.schemes is None or any(candidate.scheme.weight.needs_inputs for candidate in candidates)
    if not (by_inputs or any((inputs := each.scheme.quantized_input) and inputs.needs_range for each in candidates)):
        return groups, candidates, None
    with timer.stage("round"):
        progress = timer.within(0.0, 0.15)
        kept = None if settings.cache_dir is None else KeptRounding(settings.cache_dir, calibration)
        rounded = round_candidates(model, calibration, groups, candidates, progress=progress, kept=kept)
    return groups, rounded.candidates, rounded
