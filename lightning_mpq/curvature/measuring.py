"""The measurement of a batch: by an estimator of curvature, and of the gradient where the loss has one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

from torch import Generator

from ..groups.candidates import Candidate
from .estimators.base import Estimator, Measures, Setting
from .estimators.hessian import TaskGradient
from .estimators.input_perturbation import InputPerturbations
from .estimators.joint import JointColumns, JointMeasures
from .estimators.measurement import Measurement
from .estimators.perturbation import Perturbations

TakenApart = Callable[[JointColumns], tuple[Perturbations, InputPerturbations]]
"""The perturbations of the weights and of the inputs that joint candidates are made of."""


class BatchMeasurement:
    """Measures batches along all candidates, or along those that are new."""

    def __init__(
        self,
        estimator: Estimator,
        setting: Setting,
        candidates: Sequence[Candidate],
        apart: TakenApart,
        with_sums: Collection[str] = (),
    ) -> None:
        """Prepare.

        Args:
            estimator: Measures the curvature.
            setting: What it is given; all candidates are wanted.
            candidates: All of them.
            apart: The perturbations of weights and inputs that some candidates are sums of.
            with_sums: The groups with whose inputs sums and averages are quantized.
        """
        self._estimator, self._setting, self._with_sums = estimator, setting, with_sums
        self._candidates, self._apart = tuple(candidates), apart
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
        count = len(self._candidates)
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
        if any(candidate.scheme.quantized_input is not None for candidate in self._candidates):
            columns = JointColumns.of([self._candidates[index] for index in wanted], self._with_sums)
            weights, inputs = self._apart(columns)
            everything = tuple(range(weights.count))
            setting = replace(self._setting, everything=weights, wanted=everything, inputs=inputs)
            return [JointMeasures(part, columns) for part in self._parts(setting)]
        return self._parts(replace(self._setting, wanted=wanted))

    def _parts(self, setting: Setting) -> list[Measures]:
        made = [self._estimator.start(setting)]
        if setting.loss == "task" and not self._estimator.has_gradient:
            made.append(TaskGradient(setting.evaluator.loss, setting.perturbations, setting.inputs))
        return made
