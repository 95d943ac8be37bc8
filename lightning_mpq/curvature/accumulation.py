"""Sums over the measurements of batches, and the Taylor model that the sums amount to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup
from ..tools.distributed import gather
from ..tools.finite import all_finite
from .cache.fingerprint import combine
from .estimators.base import Loss
from .estimators.measurement import Measurement
from .moments import BlockSums, Sums, WeightedMoments, sums_of_products
from .taylor_model import TaylorModel

LEAST_BATCHES = 8
"""Below this number of batches their differences say too little about the error of their mean."""


class Accumulator:
    """The sums of gradient and curvature over all batches so far, those of this process.

    Attributes:
        samples: Samples added so far by this process.
        hashes: Hashes of the batches added so far by this process.
    """

    def __init__(
        self,
        groups: tuple[LayerGroup, ...],
        candidates: tuple[Candidate, ...],
        estimator: str,
        loss: Loss,
        settings_hash: str,
        float_bytes: int,
        cluster: int = 1,
    ) -> None:
        """Start from nothing; see `TaylorModel` for the arguments, and `profile` for ``cluster``."""
        self.samples = 0
        self.hashes: list[str] = []
        self._facts: dict[str, Any] = {
            "groups": groups,
            "candidates": candidates,
            "estimator": estimator,
            "loss": loss,
            "float_bytes": float_bytes,
            "settings_hash": settings_hash,
        }
        count = len(candidates)
        self._gradient = WeightedMoments((count,))
        self._curvature = WeightedMoments((count, count))
        self._policies = _uniform_policies(candidates)
        self._predictions = WeightedMoments((len(self._policies),))
        self._blocks = BlockSums(count, cluster)

    def add(self, measured: Measurement) -> None:
        """Add the measurement of a batch (or chunk of one)."""
        before = self._plan_sums()
        self.samples += measured.samples
        if measured.gradient is not None:
            self._gradient.update(measured.gradient, weight=measured.samples)
        if measured.matrix is not None:
            self._curvature.update(measured.matrix, weight=measured.samples)
            self._blocks.update(measured.samples, measured.matrix, measured.gradient)
        else:
            assert measured.rows is not None
            units = len(measured.rows)
            if units == measured.samples and measured.gradient is None:
                first, second = sums_of_products(measured.rows, self._blocks.curvature, self._blocks.next_blocks(units))
                self._blocks.count(units, 1.0)
            else:  # the error of gradient and curvature together needs both in one block
                nowhere = torch.zeros_like(self._blocks.curvature[:1])
                first, second = sums_of_products(measured.rows, nowhere, self._blocks.next_blocks(units) * 0)
                self._blocks.update(measured.samples, first / units, measured.gradient)
            self._curvature.update(first, second, units, measured.samples / units)
        self._predictions.update((self._plan_sums() - before) / measured.samples, weight=measured.samples)

    def relative_error(self) -> float:
        """Return the largest standard error, relative to its value, among the predictions for uniform policies.

        It comes from the differences between batches (chunks), so that correlated errors of entries are seen;
        infinite before there are `LEAST_BATCHES` of them. All processes must ask, and get the same answer.
        """
        predictions = WeightedMoments((len(self._policies),))
        predictions.load_sums(self._predictions.sums_over_ranks())
        if int(predictions.units) < LEAST_BATCHES:
            return torch.inf
        value, error = predictions.mean_and_error()
        return float((error / value.abs()).nan_to_num(nan=0.0, posinf=torch.inf).max())

    def continue_from(self, earlier: TaylorModel) -> None:
        """Take over the sums of an earlier measurement with the same settings."""
        assert earlier.sums is not None
        self.samples = earlier.samples
        self.hashes = list(earlier.batch_hashes)
        for name, moments in self._moments().items():
            moments.load_sums(_sums_of(name, earlier.sums))

    def _moments(self) -> dict[str, Sums]:
        return {
            "gradient": self._gradient,
            "curvature": self._curvature,
            "predictions": self._predictions,
            "blocks": self._blocks,
        }

    def _plan_sums(self) -> Tensor:
        """Return ``a.x + x.G.x / 2`` of each uniform policy x, summed over all samples so far."""
        slope, matrix = self._gradient.first, self._curvature.first
        if self._facts["loss"] != "task":
            slope = torch.zeros_like(slope)
        return torch.stack([slope[x].sum() + matrix[x][:, x].sum() / 2 for x in self._policies])

    def result(self) -> TaylorModel:
        """Return the Taylor model of the batches of all processes so far; all must ask."""
        sums = {
            f"{name}.{key}": value
            for name, moments in self._moments().items()
            for key, value in moments.sums_over_ranks().items()
        }
        parts = gather((self.samples, self.hashes))
        hashes = tuple(digest for _, digests in parts for digest in digests)
        return model_of_sums(sums, samples=sum(samples for samples, _ in parts), batch_hashes=hashes, **self._facts)


def model_of_sums(sums: Mapping[str, Tensor], *, loss: Loss, **facts: Any) -> TaylorModel:
    """Return the Taylor model that sums over batches amount to.

    Args:
        sums: ``gradient.`` and ``curvature.`` followed by the names of `WeightedMoments.sums`.
        loss: What is modelled; the gradient of the divergence is zero without error.
        facts: The other fields of `TaylorModel`.
    """
    means = {}
    for name in ("gradient", "curvature"):
        own = _sums_of(name, sums)
        moments = WeightedMoments(tuple(own["first"].shape))
        moments.load_sums(own)
        if name == "gradient" and loss != "task":
            means[name] = (torch.zeros_like(own["first"]), torch.zeros_like(own["first"]))
        else:
            means[name] = moments.mean_and_error()
    errors = {name: error if all_finite(error) else None for name, (_, error) in means.items()}
    return TaylorModel(
        gradient=means["gradient"][0],
        curvature=means["curvature"][0],
        gradient_error=errors["gradient"],
        curvature_error=errors["curvature"],
        loss=loss,
        sums=dict(sums),
        fingerprint=combine(facts["settings_hash"], facts["batch_hashes"]),
        **facts,
    )


def _sums_of(name: str, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in sums.items() if key.startswith(f"{name}.")}


def _uniform_policies(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Return policies that give every group its fewest bits, its second fewest, ... as lists of candidates."""
    by_group: dict[str, list[int]] = {}
    for index, candidate in enumerate(candidates):
        by_group.setdefault(candidate.group, []).append(index)
    ladders = [sorted(members, key=lambda i: candidates[i].scheme.bits) for members in by_group.values()]
    steps = max(len(ladder) for ladder in ladders)
    return [[ladder[min(step, len(ladder) - 1)] for ladder in ladders] for step in range(steps)]
