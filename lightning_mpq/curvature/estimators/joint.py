"""Candidates that quantize weights and inputs: each is the sum of a column of weights and a column of inputs.

To first order the outputs change by the sum of what either does alone, so that L + M columns are measured where a
layer's candidates are L schemes of its weight times M of its inputs. What is quantized with its inputs, residual sums
and averages, is one more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
        sums: The groups with whose inputs sums and averages are quantized.
        weight_of: For each candidate its column among ``weights``.
        input_of: For each candidate its column among ``inputs``; ``len(inputs)`` where inputs stay in float.
        sum_of: For each candidate its column among ``sums``; ``len(sums)`` where none goes with it.
    """

    weights: tuple[Candidate, ...]
    inputs: tuple[tuple[str, InputScheme], ...]
    sums: tuple[str, ...]
    weight_of: tuple[int, ...]
    input_of: tuple[int, ...]
    sum_of: tuple[int, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], with_sums: Collection[str] = ()) -> JointColumns:
        """Take candidates, in the order of groups, apart.

        Args:
            candidates: The candidates.
            with_sums: The groups with whose inputs sums and averages are quantized, where these store a range.
        """
        weights: dict[tuple[str, Any], int] = {}
        inputs: dict[tuple[str, InputScheme], int] = {}
        sums: dict[str, int] = {}
        alone: list[Candidate] = []
        weight_of, input_of, sum_of = [], [], []
        for candidate in candidates:
            weight = candidate.scheme.weight
            place = weights.setdefault((candidate.group, weight), len(weights))
            if place == len(alone):
                alone.append(replace(candidate, scheme=LayerScheme(weight)))
            weight_of.append(place)
            scheme = candidate.scheme.quantized_input
            input_of.append(-1 if scheme is None else inputs.setdefault((candidate.group, scheme), len(inputs)))
            summed = candidate.group in with_sums and scheme is not None and scheme.needs_range
            sum_of.append(sums.setdefault(candidate.group, len(sums)) if summed else -1)
        places = [
            tuple(len(known) if place < 0 else place for place in found)  # the zeros that `summed` puts behind
            for known, found in ((inputs, input_of), (sums, sum_of))
        ]
        return cls(tuple(alone), tuple(inputs), tuple(sums), tuple(weight_of), *places)

    def summed(self, columns: Tensor) -> Tensor:
        """Return [..., candidates] from [..., weights, inputs and sums]."""
        weights, inputs, sums = columns.split([len(self.weights), len(self.inputs), len(self.sums)], -1)
        nothing = columns.new_zeros(*columns.shape[:-1], 1)
        inputs, sums = torch.cat([inputs, nothing], -1), torch.cat([sums, nothing], -1)
        return weights[..., list(self.weight_of)] + inputs[..., list(self.input_of)] + sums[..., list(self.sum_of)]


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
