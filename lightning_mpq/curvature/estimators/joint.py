"""Candidates that quantize weights and inputs: each is the sum of a column of weights and a column of inputs.

To first order the outputs change by the sum of what either does alone, so that L + M columns are measured where a
layer's candidates are L schemes of its weight times M of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from ...groups.candidates import Candidate
from ...schemes import InputScheme, LayerScheme
from .base import Measures
from .measurement import Measurement


@dataclass(frozen=True)
class JointColumns:
    """Which columns add up to each candidate.

    Attributes:
        weights: The distinct schemes of weights, as candidates with inputs in float, in the order of groups.
        inputs: The distinct (group, scheme of inputs) pairs, in the order of groups.
        weight_of: For each candidate its column among ``weights``.
        input_of: For each candidate its column among ``inputs``; ``len(inputs)`` where inputs stay in float.
    """

    weights: tuple[Candidate, ...]
    inputs: tuple[tuple[str, InputScheme], ...]
    weight_of: tuple[int, ...]
    input_of: tuple[int, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> JointColumns:
        """Take candidates, in the order of groups, apart."""
        weights: dict[tuple[str, Any], int] = {}
        inputs: dict[tuple[str, InputScheme], int] = {}
        alone: list[Candidate] = []
        weight_of, input_of = [], []
        for candidate in candidates:
            weight = candidate.scheme.weight
            place = weights.setdefault((candidate.group, weight), len(weights))
            if place == len(alone):
                alone.append(replace(candidate, scheme=LayerScheme(weight)))
            weight_of.append(place)
            scheme = candidate.scheme.quantized_input
            input_of.append(-1 if scheme is None else inputs.setdefault((candidate.group, scheme), len(inputs)))
        zero = len(inputs)
        return cls(tuple(alone), tuple(inputs), tuple(weight_of), tuple(zero if i < 0 else i for i in input_of))

    def summed(self, columns: Tensor) -> Tensor:
        """Return [..., candidates] from [..., weights and inputs]."""
        count = len(self.weights)
        inputs = torch.cat([columns[..., count:], columns.new_zeros(*columns.shape[:-1], 1)], -1)
        return columns[..., list(self.weight_of)] + inputs[..., list(self.input_of)]


@dataclass(frozen=True)
class JointMeasures:
    """Measures of weights and inputs, seen as those of joint candidates."""

    apart: Measures
    columns: JointColumns

    def measure(self, batch: Any, generator: Generator) -> Measurement:
        """Return what a batch says of the candidates."""
        found = self.apart.measure(batch, generator)
        assert found.matrix is None
        rows, gradient = found.rows, found.gradient
        return Measurement(
            found.samples,
            rows=None if rows is None else self.columns.summed(rows),
            gradient=None if gradient is None else self.columns.summed(gradient),
        )
