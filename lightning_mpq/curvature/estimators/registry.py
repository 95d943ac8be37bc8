"""The estimators by name, put together to one measurement of a batch, for all candidates or for those that are new."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

from torch import Generator

from ...network.evaluator import Evaluator
from ...network.likelihood import Likelihood
from .batch_fisher import BatchFisher
from .fisher import Fisher
from .gauss_newton import GaussNewton
from .hessian import BatchLoss, Hessian, TaskGradient, divergence_loss
from .measurement import Measurement
from .perturbation import Perturbations
from .secant import Secant

Curvature = Literal["fisher", "hessian", "gauss_newton", "secant"]
Loss = Literal["divergence", "task"]
CURVATURES: tuple[str, ...] = get_args(Curvature)
LOSSES: tuple[str, ...] = get_args(Loss)
STATISTICS = ("frozen", "reestimated")


def modelled_loss(curvature: str, loss: Loss | None) -> Loss:
    """Return the loss that is modelled: the given one, or for None the estimator's own."""
    return loss or ("task" if curvature == "hessian" else "divergence")


def check_settings(
    curvature: str,
    loss: str | None,
    statistics: str,
    draws: int | None,
    chunk_size: int | None,
    tolerance: float | None,
) -> None:
    """Refuse settings of `profile` that make no sense; None stands for its own choice.

    Raises:
        ValueError: If there are any; says which and what there is to choose from.
    """
    for name, value, allowed in (
        ("curvature estimator", curvature, CURVATURES),
        ("loss", loss, (None, *LOSSES)),
        ("statistics", statistics, STATISTICS),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    if any(number is not None and number < 1 for number in (draws, chunk_size)):
        raise ValueError(f"draws and chunk_size must be positive, got {draws} and {chunk_size}.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be a positive fraction or None, got {tolerance!r}.")


class Estimator(Protocol):
    """Measures batches."""

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return what a batch tells."""


class Estimators:
    """What measures a batch: an estimator of the curvature, and one of the gradient where the loss has any."""

    def __init__(
        self,
        curvature: Curvature,
        loss: Loss,
        evaluator: Evaluator,
        likelihood: Likelihood | None,
        draws: int,
        whole_batches: bool,
        perturbations: Perturbations,
        restricted: Callable[[Sequence[int]], Perturbations],
    ) -> None:
        """Prepare.

        Args:
            curvature: Which estimator.
            loss: What is modelled.
            evaluator: Runs model and loss.
            likelihood: What the outputs mean; None if that does not matter.
            draws: Random output gradients for each sample (fisher).
            whole_batches: Whether samples act on each other, so that fisher scores whole batches.
            perturbations: All candidates.
            restricted: Positions of some candidates to their perturbations alone.
        """
        self._curvature = curvature
        self._loss = loss
        self._evaluator = evaluator
        self._likelihood = likelihood
        self._draws = draws
        self._whole_batches = whole_batches
        self._perturbations = perturbations
        self._restricted = restricted
        self._made: dict[tuple[int, ...], list[Estimator]] = {}

    def measure(
        self, batch: Any, generator: Generator, known: Measurement | None, columns: Sequence[int]
    ) -> Measurement:
        """Return what a batch, on the model's device, tells about all candidates.

        Args:
            batch: The batch.
            generator: For what is drawn.
            known: What the same batch, with the same generator, told about some candidates earlier.
            columns: Positions of these.
        """
        count = self._perturbations.count
        left = tuple(range(count)) if known is None else tuple(sorted(set(range(count)) - set(columns)))
        if known is not None and not left:
            return known.of([list(columns).index(position) for position in range(count)])
        if left not in self._made:
            self._made[left] = self._make(left)
        parts = [estimator.measure(batch, generator) for estimator in self._made[left]]
        found = Measurement(
            parts[0].samples,
            parts[0].rows,
            parts[0].matrix,
            next((part.gradient for part in parts if part.gradient is not None), None),
        )
        if known is None:
            return found
        if found.matrix is not None and found.gradient is not None:  # the hessian has the gradient of all at hand
            found = Measurement(found.samples, None, found.matrix, found.gradient[list(left)])
        return known.joined(columns, found, left)

    def _make(self, wanted: tuple[int, ...]) -> list[Estimator]:
        """Return the estimators of some candidates."""
        evaluator, likelihood = self._evaluator, self._likelihood
        everything = len(wanted) == self._perturbations.count
        if self._curvature == "hessian":
            loss: BatchLoss = evaluator.loss
            if self._loss != "task":
                assert likelihood is not None
                loss = divergence_loss(evaluator, likelihood)
            return [Hessian(loss, self._perturbations, evaluator.model, None if everything else wanted)]
        assert likelihood is not None
        perturbations = self._perturbations if everything else self._restricted(wanted)
        made: list[Estimator]
        if self._curvature == "fisher":
            kind_of_fisher = BatchFisher if self._whole_batches else Fisher
            made = [kind_of_fisher(evaluator, perturbations, likelihood, self._draws)]
        else:
            kind = Secant if self._curvature == "secant" else GaussNewton
            made = [kind(evaluator, perturbations, likelihood, self._whole_batches)]
        if self._loss == "task":
            made.append(TaskGradient(evaluator.loss, perturbations))
        return made
