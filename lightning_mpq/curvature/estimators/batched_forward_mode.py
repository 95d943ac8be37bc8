"""Forward mode for many candidates at once: one pass of the values, and one tangent for each candidate beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from ...network.evaluator import Evaluator
from .forward_mode import output_change
from .perturbation import Perturbations
from .weights import substituted

_MOST_DIRECTIONS = 8
"""Tangents carried at once: activations of that many batches live beside those of the batch itself."""


class BatchedForwardMode:
    """Computes J D for candidates that touch the same weights together.

    Values are computed once for all of them, and a tangent exists only after the layer it starts from, so that K
    candidates cost about K forward passes instead of 3 K. What a model does that `torch.vmap` does not take (a
    conversion to ``channels_last``, say) is found by the first attempt, and by comparing one tangent with
    `output_change`; candidates are then run one at a time.
    """

    def __init__(self, evaluator: Evaluator, perturbations: Perturbations) -> None:
        """Keep what runs the model, and all candidates."""
        self._evaluator = evaluator
        self._perturbations = perturbations
        self._together = True
        self._compared = False

    def changes(self, indices: Sequence[int], batch: Any) -> Iterator[tuple[int, Tensor]]:
        """Yield each candidate with its J D, shaped like the outputs.

        Raises:
            NotImplementedError: If the model holds an operation without a forward-mode derivative.
        """
        for _, members in groupby(indices, key=self._touched):
            alike = list(members)
            for start in range(0, len(alike), _MOST_DIRECTIONS):
                part = alike[start : start + _MOST_DIRECTIONS]
                found = self._of_many(part, batch) if self._together and len(part) > 1 else None
                if found is not None:
                    yield from zip(part, found.unbind(), strict=True)
                    continue
                for index in part:
                    yield index, output_change(self._evaluator, self._perturbations, index, batch)

    def _touched(self, index: int) -> tuple[str, ...]:
        """Return the layers whose weights a candidate changes."""
        columns = self._perturbations.columns
        leaders = self._perturbations.leaders
        return tuple(layer for layer in leaders if columns[layer].start <= index < columns[layer].stop)

    def _of_many(self, indices: Sequence[int], batch: Any) -> Tensor | None:
        """Return J D of candidates that touch the same weights, [B, *outputs]; None: run them one at a time."""
        found: Tensor | None = None
        with suppress(RuntimeError, TypeError, ValueError, NotImplementedError):  # output_change says what is wrong
            found = self._batched(indices, batch)
        if found is not None and not self._compared:
            single = output_change(self._evaluator, self._perturbations, indices[0], batch)
            self._compared = True
            allowed = 30 * torch.finfo(single.dtype).eps ** 0.5 * float(single.norm())
            if found.shape[1:] != single.shape or not float((found[0] - single).norm()) <= allowed:
                found = None
        self._together = found is not None
        return found

    def _batched(self, indices: Sequence[int], batch: Any) -> Tensor:
        perturbed = [self._perturbations.of_candidate(index) for index in indices]
        leaders = list(perturbed[0])
        tangents = tuple(torch.stack([deltas[leader] for deltas in perturbed]) for leader in leaders)
        weights = tuple(self._perturbations.weight(leader) for leader in leaders)

        def outputs(*moved: Tensor) -> Tensor:
            with substituted(self._perturbations, dict(zip(leaders, moved, strict=True))):
                return self._evaluator.outputs(batch)

        def along(*directions: Tensor) -> Tensor:
            change = jvp(outputs, weights, directions)[1]
            assert isinstance(change, Tensor)
            return change

        with torch.no_grad():
            found = torch.vmap(along)(*tangents)
        assert isinstance(found, Tensor)
        return found.detach()
