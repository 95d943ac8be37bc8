"""Allocation problems to measure on: synthetic families of stated statistics, and a measured Taylor model.

A synthetic candidate (layer l, width b) has the effect on N whitened output samples

    u[l, b] = s_l 2^-(b - 2) (sqrt(rho_l) * shared factors + sqrt(1 - rho_l) * own noise),   G = u^T u / N,

so that layers interact through the factors they share. Sizes span three decades, and s_l^2 is lognormal
times the square root of the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_mpq import TaylorModel, WeightScheme, make_candidates
from lightning_mpq.allocation.solver.problem import Problem
from lightning_mpq.groups.groups import LayerGroup

Array = NDArray[np.float64]
DATA = Path(__file__).parents[2] / "tests" / "data" / "resnet20_taylor.npz"
WIDTHS = {7: (2, 3, 4, 5, 6, 7, 8), 3: (2, 4, 8), 14: (2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8)}
_EXTRA_BITS, _EXTRA_ERROR = 0.25, 0.88
"""The second scheme of a width stores so much more a weight and errs so much less: more scales."""


@dataclass(frozen=True)
class Family:
    """Statistics of a synthetic family.

    Attributes:
        rho: Range of the share of each layer's variance that lies in shared factors.
        factors: How many factors there are.
        samples: How many output samples.
        signed: Whether loadings have both signs; else all errors push the same way.
        noise: Symmetric noise between layers relative to the diagonal, over sqrt(layers): makes G indefinite.
        spread: Of the logarithm of the samples' weights: a few samples say most, as in a language model.
        kept: What shrinkage leaves of G between layers.
    """

    rho: tuple[float, float]
    factors: int
    samples: int
    signed: bool = True
    noise: float = 0.0
    spread: float = 0.0
    kept: float = 1.0


FAMILIES = {
    "weak": Family((0.0, 0.2), 10, 4096),
    "mid": Family((0.1, 0.5), 5, 2048),
    "strong": Family((0.4, 0.7), 3, 512),
    "pos": Family((0.3, 0.6), 1, 1024, signed=False),
    "indef": Family((0.1, 0.5), 5, 2048, noise=0.15),
    "weakly measured": Family((0.0, 0.1), 5, 128, spread=1.0, kept=0.05),
}
"""The last one has the statistics of the recorded models: mean correlation 0.05..0.3, nearly all of it sampling noise,
of which shrinkage leaves a twentieth. (Names in alphabetical order number the seeds: add later ones at the end.)"""


def _directions(random: np.random.Generator, loadings: Array, signed: bool) -> Array:
    """Return rows of unit length, made positive if loadings are to have one sign."""
    rows = loadings if signed else np.abs(loadings)
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def synthetic(family: str, layers: int, widths: int, average_bits: float, seed: int = 0) -> Problem:
    """Return a problem of a family with one budget on the average bits."""
    kind = FAMILIES[family]
    random = np.random.default_rng([seed, layers, widths, sorted(FAMILIES).index(family)])
    bits = np.array(WIDTHS[widths])
    size = np.round(np.logspace(3, 6, 12))[random.integers(0, 12, layers)]
    variance = np.sqrt(size) * np.exp(random.normal(0, 1.2, layers))
    variance /= variance.mean()
    factors = np.linalg.qr(random.normal(size=(kind.samples, kind.factors)))[0] * np.sqrt(kind.samples)
    base = _directions(random, random.normal(size=(layers, kind.factors)), kind.signed)
    rho = random.uniform(*kind.rho, layers)
    common_noise = random.normal(size=(kind.samples, layers))
    effects = np.empty((kind.samples, layers, widths))
    again = np.append(False, bits[1:] == bits[:-1])
    sample = np.exp(random.normal(0, kind.spread, kind.samples))[:, None] if kind.spread else 1.0
    for place, width in enumerate(bits):
        own = np.sqrt(0.5) * (common_noise + random.normal(size=(kind.samples, layers)))
        wobble = base + 0.15 * random.normal(size=base.shape) / np.sqrt(kind.factors)
        shared = factors @ _directions(random, wobble, kind.signed).T
        amplitude = np.sqrt(variance) * 2.0 ** (2 - width) * np.exp(random.normal(0, 0.1, layers))
        amplitude *= _EXTRA_ERROR ** again[place]
        effects[:, :, place] = sample * amplitude * (np.sqrt(rho) * shared + np.sqrt(1 - rho) * own)
    flat = effects.reshape(kind.samples, -1)
    curvature = flat.T @ flat / (kind.samples * np.mean(np.square(sample)))
    group = np.repeat(np.arange(layers), widths)
    if kind.noise:
        noise = random.normal(size=curvature.shape) * kind.noise / np.sqrt(2 * layers)
        noise[group[:, None] == group[None, :]] = 0
        scale = np.sqrt(curvature.diagonal())
        curvature = curvature + (noise + noise.T) * np.outer(scale, scale)
    if kind.kept < 1:
        curvature[group[:, None] != group[None, :]] *= kind.kept
    stored = bits + _EXTRA_BITS * again
    return _with_bits(curvature, np.zeros(len(curvature)), size, stored, average_bits)


def resnet20(curvature: str, average_bits: float) -> Problem:
    """Return the measured model of ResNet-20: ``"hessian"`` (with its gradient), ``"gauss_newton"`` or ``"fisher"``."""
    data = np.load(DATA)
    matrix = data[curvature].astype(float)
    gradient = data["gradient"].astype(float) * (curvature == "hessian")
    return _with_bits((matrix + matrix.T) / 2, gradient, data["weights"].astype(float), data["bits"], average_bits)


def resnet20_taylor() -> TaylorModel:
    """Return the same with the Fisher matrix as `frontier` takes it: one scale a layer, of nearly no bytes."""
    data = np.load(DATA)
    names = [f"layer{number:02d}" for number in range(len(data["weights"]))]
    groups = tuple(
        LayerGroup(name, (name,), ((1, int(count)),)) for name, count in zip(names, data["weights"], strict=True)
    )
    schemes = [WeightScheme(int(bits)) for bits in data["bits"]]
    candidates = make_candidates(groups, schemes=schemes)
    matrix = torch.tensor(data["fisher"], dtype=torch.float64)
    zero = torch.zeros(len(candidates))
    return TaylorModel(groups, candidates, zero, (matrix + matrix.T) / 2, "fisher", "divergence", 4096)


def _with_bits(curvature: Array, gradient: Array, size: Array, bits: Array, average_bits: float) -> Problem:
    """Return the problem with a budget on the average bits per weight."""
    used = (size[:, None] * bits).ravel()
    group = np.repeat(np.arange(len(size)), len(bits))
    return Problem(gradient, curvature, group, used[None, :], np.array([np.floor(average_bits * size.sum())]), used)
