"""Estimators by their short names, and their settings checked before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable

from ...groups.candidates import Candidate
from ...tools.checks import check_one_of, is_number, shown
from .base import LOSSES, Estimator, Loss
from .fisher import Fisher
from .gauss_newton import GaussNewton
from .hessian import Hessian
from .secant import Secant

ESTIMATORS: dict[str, type[Estimator]] = {kind.name: kind for kind in (Fisher, Hessian, GaussNewton, Secant)}
"""Short names, and what they stand for."""
STATISTICS = ("auto", "frozen", "reestimated")


def estimator_named(estimator: str | Estimator) -> Estimator:
    """Return an estimator, which may be given by its short name.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(estimator, Estimator):
        return estimator
    if not isinstance(estimator, str) or estimator not in ESTIMATORS:
        raise ValueError(
            f"estimator must be one of {', '.join(map(repr, ESTIMATORS))}, or an instance of a subclass of Estimator; "
            f"got {shown(estimator)}."
        )
    return ESTIMATORS[estimator]()


def modelled_loss(estimator: str | Estimator, loss: Loss | None) -> Loss:
    """Return the loss that is modelled: the given one, or for None the estimator's own."""
    return loss or estimator_named(estimator).default_loss


def refuse_unseen_inputs(estimator: str | Estimator, candidates: Iterable[Candidate]) -> None:
    """Refuse candidates that quantize inputs for an estimator that measures weights only.

    Raises:
        ValueError: If there are any; names the estimator and those that can.
    """
    found = estimator_named(estimator)
    joint = next((each for each in candidates if each.scheme.quantized_input is not None), None)
    if joint is not None and not found.sees_inputs:
        able = ", ".join(repr(name) for name, kind in ESTIMATORS.items() if kind.sees_inputs)
        raise ValueError(
            f"estimator={found.name!r} measures weights only, and {joint.group} is offered {joint.scheme}. Use one of "
            f"{able}, or offer inputs in float."
        )


def check_settings(
    estimator: str | Estimator,
    loss: str | None,
    statistics: str,
    draws: int | None,
    chunk_size: int | None,
    tolerance: float | None,
    cluster: int = 1,
) -> None:
    """Refuse settings of `profile` that make no sense; None stands for its own choice.

    Raises:
        ValueError: If there are any; says which and what there is to choose from.
    """
    found = estimator_named(estimator)
    check_one_of("loss", loss, (None, *LOSSES))
    check_one_of("statistics", statistics, STATISTICS)
    counts = [number for number in (draws, chunk_size) if number is not None]
    if any(not is_number(number, whole=True) or number < 1 for number in counts):
        raise ValueError(f"draws and chunk_size must be positive integers, got {shown(draws)} and {shown(chunk_size)}.")
    if draws is not None and not isinstance(estimator, str) and getattr(found, "draws", draws) != draws:
        raise ValueError(f"draws={draws} contradicts {found!r}; give it to one of them.")
    if tolerance is not None and not (is_number(tolerance) and tolerance > 0):
        raise ValueError(f"tolerance must be a positive fraction or None, got {shown(tolerance)}.")
    if isinstance(cluster, bool) or not isinstance(cluster, int) or cluster < 1:
        raise ValueError(f"cluster must be a positive number of samples in a row, got {shown(cluster)}.")
