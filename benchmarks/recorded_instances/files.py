"""Recorded Taylor models as small files, and the allocation problems that they pose.

A Fisher matrix of N scores has rank N at most, so it is kept as a factor: ``G_ij = s_i s_j <f_i, f_j>`` with unit
columns f (float16, so that correlations are right to about 1e-4 and G stays positive semidefinite) and exact s.
Standard errors of correlations are alike for all pairs of candidates of two groups, so their root mean square is kept
once for each pair of groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_mpq import TaylorModel
from lightning_mpq.allocation.solver.problem import Problem

FOLDER = Path(__file__).parent
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Recorded:
    """A Taylor model as it was measured, before shrinkage.

    Attributes:
        names: Name of each group.
        weights: Weights of each group.
        group: Group of each candidate, [K], ascending from 0.
        bits: Width of each candidate.
        stored_bits: What it stores, scales and zero points included.
        curvature: G, [K, K].
        error: Standard error of each entry of G between groups, [K, K]; 0 within groups.
        samples: How many samples the sums ran over.
    """

    names: tuple[str, ...]
    weights: NDArray[np.int64]
    group: NDArray[np.int64]
    bits: NDArray[np.int64]
    stored_bits: NDArray[np.int64]
    curvature: Array
    error: Array
    samples: int

    @property
    def intensity(self) -> float:
        """The share of the curvature between groups that its sampling noise accounts for (see `shrink`)."""
        between = self.group[:, None] != self.group[None, :]
        scale = np.sqrt(np.outer(self.curvature.diagonal(), self.curvature.diagonal()))[between]
        noise, signal = self.error[between] / scale, self.curvature[between] / scale
        return float(min(1.0, (noise**2).sum() / (signal**2).sum()))

    @property
    def least_bits(self) -> float:
        """Average bits of the smallest policy."""
        starts = np.searchsorted(self.group, np.arange(len(self.names)))
        return float(np.minimum.reduceat(self.stored_bits, starts).sum() / self.weights.sum())

    def problem(self, average_bits: float, *, shrunk: bool = True) -> Problem:
        """Return the problem of the least predicted loss within an average of stored bits.

        Args:
            average_bits: Stored bits for each weight, scales included.
            shrunk: Whether the curvature between groups is shrunk as `profile` does it by default.
        """
        between = self.group[:, None] != self.group[None, :]
        curvature = self.curvature * np.where(between, 1 - self.intensity, 1.0) if shrunk else self.curvature
        size = self.stored_bits.astype(float)
        limit = np.array([np.floor(average_bits * float(self.weights.sum()))])
        return Problem(np.zeros(len(size)), curvature, self.group, size[None, :], limit, size)


def store(taylor: TaylorModel, path: Path) -> None:
    """Write what `load` reads."""
    G = taylor.curvature.numpy()
    scale = np.sqrt(np.maximum(G.diagonal(), 1e-300))
    values, vectors = np.linalg.eigh(G / np.outer(scale, scale))
    kept = values > 1e-6 * values[-1]
    factor = (vectors[:, kept] * np.sqrt(values[kept])).T
    order = {group.name: place for place, group in enumerate(taylor.groups)}
    group = np.array([order[candidate.group] for candidate in taylor.candidates])
    assert taylor.curvature_error is not None
    squared = (taylor.curvature_error.numpy() / np.outer(scale, scale)) ** 2
    starts = np.searchsorted(group, np.arange(len(order)))
    counts = np.bincount(group)
    pairs = np.add.reduceat(np.add.reduceat(squared, starts, axis=0), starts, axis=1) / np.outer(counts, counts)
    np.savez_compressed(
        path,
        names=np.array(list(order)),
        weights=np.array([group.weight_count for group in taylor.groups]),
        group=group.astype(np.int16),
        bits=np.array([candidate.scheme.bits for candidate in taylor.candidates], dtype=np.int8),
        stored_bits=np.array([candidate.stored_bits for candidate in taylor.candidates]),
        scale=scale,
        factor=factor.astype(np.float16),
        error=np.sqrt(pairs).astype(np.float16),
        samples=taylor.samples,
    )


def recorded_problem(name: str, above: float) -> Problem:
    """Return the problem of a recorded model with so many average bits above the least possible."""
    recorded = load(name)
    return recorded.problem(recorded.least_bits + above)


def load(name: str) -> Recorded:
    """Return a recorded model: ``NETWORK-ROUNDING`` or a path."""
    path = Path(name) if name.endswith(".npz") else FOLDER / f"{name}.npz"
    data = np.load(path)
    factor, scale, group = data["factor"].astype(float), data["scale"], data["group"].astype(np.int64)
    unit = factor / np.linalg.norm(factor, axis=0)
    curvature = np.outer(scale, scale) * (unit.T @ unit)
    curvature = (curvature + curvature.T) / 2
    error = data["error"].astype(float)[np.ix_(group, group)] * np.outer(scale, scale)
    error[group[:, None] == group[None, :]] = 0.0
    return Recorded(
        tuple(data["names"].tolist()),
        data["weights"],
        group,
        data["bits"].astype(np.int64),
        data["stored_bits"],
        curvature,
        error,
        int(data["samples"]),
    )
