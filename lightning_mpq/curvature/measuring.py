"""The measurement of a batch: by an estimator of curvature, and of the gradient where the loss has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Generator

from .estimators.base import Estimator, Measures, Setting
from .estimators.hessian import TaskGradient
from .estimators.measurement import Measurement


class BatchMeasurement:
    """Measures batches along all candidates, or along those that are new."""

    def __init__(self, estimator: Estimator, setting: Setting) -> None:
        """Prepare.

        Args:
            estimator: Measures the curvature.
            setting: What it is given; all candidates are wanted.
        """
        self._estimator, self._setting = estimator, setting
        self._made: dict[tuple[int, ...], list[Measures]] = {}

    def measure(
        self, batch: Any, generator: Generator, known: Measurement | None, columns: Sequence[int]
    ) -> Measurement:
        """Return what a batch, on the model's device, says about all candidates.

        Args:
            batch: The batch.
            generator: For what is drawn.
            known: What the same batch, with the same generator, said about some candidates earlier.
            columns: Positions of these.
        """
        count = self._setting.everything.count
        left = tuple(range(count)) if known is None else tuple(sorted(set(range(count)) - set(columns)))
        if known is not None and not left:
            return known.of([list(columns).index(position) for position in range(count)])
        if left not in self._made:
            self._made[left] = self._start(left)
        parts = [part.measure(batch, generator) for part in self._made[left]]
        gradient = next((part.gradient for part in parts if part.gradient is not None), None)
        found = replace(parts[0], gradient=gradient)
        if known is None:
            return found
        if found.matrix is not None and gradient is not None:  # the hessian has the gradient of all at hand
            found = replace(found, gradient=gradient[list(left)])
        return known.joined(columns, found, left)

    def _start(self, wanted: tuple[int, ...]) -> list[Measures]:
        setting = replace(self._setting, wanted=wanted)
        made = [self._estimator.start(setting)]
        if setting.loss == "task" and not self._estimator.has_gradient:
            made.append(TaskGradient(setting.evaluator.loss, setting.perturbations))
        return made
