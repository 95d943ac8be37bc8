"""Groups that the loss says nothing about: their weights change under rounding, and no score shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..network.likelihood import Categorical, Likelihood
from ..network.predicted_targets import predicted
from ..rounding.rounded_weights import RoundedWeights
from ..tools.warning import warn
from .estimators.perturbation import Perturbations
from .taylor_model import TaylorModel


def silent_groups(taylor: TaylorModel, model: nn.Module, rounded: RoundedWeights | None) -> list[str]:
    """Return the groups all of whose scores are zero though some candidate changes a weight.

    A weight that every candidate leaves as it is (zeros, or weights on a grid already) has zero scores by right.

    Args:
        taylor: What was measured.
        model: The float model.
        rounded: The weights of all candidates; None if each is rounded to nearest.
    """
    scored = (taylor.gradient != 0) | (taylor.curvature.diagonal() != 0)
    loud = {candidate.group for candidate, heard in zip(taylor.candidates, scored.tolist(), strict=True) if heard}
    quiet = [group for group in taylor.groups if group.name not in loud]
    if not quiet:
        return []
    offered = [candidate for candidate in taylor.candidates if candidate.group not in loud]
    steps = Perturbations(model, quiet, offered, rounded=rounded)
    moved = (index for index in range(steps.count) if any(step.any() for step in steps.of_candidate(index).values()))
    return list(dict.fromkeys(offered[index].group for index in moved))


def refuse_silence(silent: Sequence[str], taylor: TaylorModel, ignored: int) -> None:
    """Refuse a Taylor model by which nothing can be decided; warn of groups whose bits it cannot decide.

    Args:
        silent: What `silent_groups` returned.
        taylor: What was measured.
        ignored: How many batches hold no label that counts, see `all_ignored`.

    Raises:
        ValueError: If no group has a score.
    """
    batches = len(taylor.batch_hashes)
    labels = f"In {ignored} of {batches} calibration batches every label is ignored, so that no position counts."
    if len(silent) == len(taylor.groups):
        raise ValueError(
            "Every score is zero: as far as was measured, no weight matters, and bits cannot be decided. "
            + (labels if ignored else "Are the outputs constant, detached, or saturated probabilities?")
            + " Calibrate on batches with outputs that count, or say by forward_fn= and likelihood= what they are."
        )
    if ignored:
        warn(f"{labels} They say nothing about the loss.")
    if silent:
        warn(
            f"No output reacts to the weights of {', '.join(silent)} on the calibration batches: all their scores are "
            f"zero, and bits would be decided by nothing. keep_float={list(silent)} leaves them in float, as the "
            "callback does by itself."
        )


def all_ignored(likelihood: Likelihood | None, batch: Any) -> bool:
    """Tell whether a batch has labels, and all of them are those that a `Categorical` ignores."""
    if not isinstance(likelihood, Categorical):
        return False
    targets = predicted(batch, likelihood.ignore_index)
    if targets is None or not targets.numel():
        return False
    return bool((targets == likelihood.ignore_index).all())
