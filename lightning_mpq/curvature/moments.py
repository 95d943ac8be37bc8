"""Sums over units of data from which means and their standard errors follow; they add up over processes and files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ..tools.distributed import sum_over_ranks

_CHUNK_ELEMENTS = 2**24
"""Elements of per-sample matrices [n, K, K] that are made at once (128 MiB of float64)."""


def sums_of_products(rows: Tensor, blocks: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum_n P_n`` and ``sum_n P_n * P_n`` (entry by entry) of per-unit matrices ``P_n = R_n^T R_n``.

    Args:
        rows: R, [N, rows, K].
        blocks: [L, K, K]; ``P_n`` is added to block ``numbers[n]``.
        numbers: Block of each unit, [N].

    Returns:
        Two matrices [K, K], float64.
    """
    _, count, width = rows.shape
    if count == 1:
        flat = _wide(rows[:, 0])
        narrow = flat.to(blocks)
        for block in numbers.unique().tolist():
            part = narrow[numbers == block]
            blocks[block].addmm_(part.T, part)
        squared = flat.square()
        return flat.T @ flat, squared.T @ squared
    first = torch.zeros(width, width, dtype=torch.float64, device=_wide(rows[:0]).device)
    second = torch.zeros_like(first)
    size = max(1, _CHUNK_ELEMENTS // (width * max(width, count)))
    for part, own in zip(rows.split(size), numbers.split(size), strict=True):
        wide = _wide(part)
        products = wide.transpose(1, 2) @ wide
        blocks.index_add_(0, own, products.to(blocks))
        first += products.sum(0)
        second += products.square_().sum(0)
    return first, second


def _wide(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if their device has no such type."""
    return values.to("cpu", torch.float64) if values.device.type == "mps" else values.double()


class Sums(Metric):
    """Tensors that are sums over data, and add up over processes and files."""

    full_state_update = False

    def sums(self) -> dict[str, Tensor]:
        """Return the sums by name, on the CPU; added up over disjoint data they are the sums over all of it."""
        return {name: getattr(self, name).detach().cpu().clone() for name in self._defaults}

    def sums_over_ranks(self) -> dict[str, Tensor]:
        """Return the sums over the data of all processes; every rank must call it, and gets the same bits."""
        return {name: sum_over_ranks(value) for name, value in self.sums().items()}

    def load_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Replace the sums by earlier ones."""
        for name, start in self._defaults.items():
            assert isinstance(start, Tensor)
            setattr(self, name, sums[name].to(start).reshape(start.shape).clone())
        self._update_count = max(self._update_count, 1)


class WeightedMoments(Sums):
    r"""Mean of values x_u over units u (samples or batches) of weight w_u, with its standard error.

    mean = sum w x / sum w and, with U units,
    error^2 = U / (U - 1) * sum w^2 (x - mean)^2 / (sum w)^2,
    the estimator for a ratio of sums (W. G. Cochran, Sampling Techniques, 3rd ed., 1977, chapter 6); for equal
    weights it is the usual standard error of a mean.

    Example:
        >>> moments = WeightedMoments(())
        >>> for value in (1.0, 2.0, 6.0):
        ...     moments.update(torch.tensor(value))
        >>> [round(float(result), 4) for result in moments.compute()]
        [3.0, 1.5275]
    """

    weight: Tensor
    weight_squared: Tensor
    units: Tensor
    first: Tensor
    cross: Tensor
    second: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Start sums of zero.

        Args:
            shape: Shape of one value.
        """
        super().__init__(sync_on_compute=False)  # `sums_over_ranks` says when
        for name in ("weight", "weight_squared", "units"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("first", "cross", "second"):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, first: Tensor, second: Tensor | None = None, units: int = 1, weight: float = 1.0) -> None:
        """Add one unit, or several of equal weight at once.

        Args:
            first: The value of the unit, or the sum of values.
            second: The sum of squared values; None for one unit.
            units: How many units are added.
            weight: Weight of each.
        """
        first = first.to(self.first)
        second = first.square() if second is None else second.to(self.second)
        self.units += units
        self.weight += weight * units
        self.weight_squared += weight**2 * units
        self.first += weight * first
        self.cross += weight**2 * first
        self.second += weight**2 * second

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard error; the error of a single unit is infinite."""
        mean = self.first / self.weight
        spread = self.second - 2 * mean * self.cross + mean.square() * self.weight_squared
        variance = spread.clamp(min=0) / self.weight.square() * (self.units / (self.units - 1))
        unknown = torch.full_like(mean, torch.inf)
        return mean, variance.sqrt() if self.units > 1 else unknown

    def mean_and_error(self) -> tuple[Tensor, Tensor]:
        """Return `compute` on the CPU in the shape of a value (torchmetrics makes single elements scalars)."""
        mean, error = self.compute()
        return mean.cpu().reshape(self.first.shape), error.cpu().reshape(self.first.shape)


class BlockSums(Sums):
    """Sums over L blocks of the data, from whose differences the error of any function of the sums follows.

    Units of data go to the blocks in turn, or ``cluster`` of them at a time, those in a row that hang together.

    Memory: L K^2 numbers of 4 bytes, with L = 16 up to 2,048 candidates (256
    MiB there) and 8 beyond; the rounding of single precision is far below the differences between blocks.
    """

    weight: Tensor
    units: Tensor
    gradient: Tensor
    curvature: Tensor

    def __init__(self, count: int, cluster: int = 1) -> None:
        """Start sums of zero for ``count`` candidates; so many units in a row go to the same block."""
        super().__init__(sync_on_compute=False)
        self._cluster = cluster
        blocks = 16 if count <= 2048 else 8
        self.add_state("weight", torch.zeros(blocks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("units", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("gradient", torch.zeros(blocks, count, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("curvature", torch.zeros(blocks, count, count), dist_reduce_fx="sum")

    def next_blocks(self, units: int) -> Tensor:
        """Return the blocks of the next units, [units]."""
        order = int(self.units) + torch.arange(units, device=self.weight.device)
        return order // self._cluster % len(self.weight)

    def update(self, weight: float, curvature: Tensor, gradient: Tensor | None = None) -> None:
        """Add one unit of a weight, given its values."""
        block = int(self.next_blocks(1))
        self.curvature[block] += weight * curvature.to(self.curvature)
        if gradient is not None:
            self.gradient[block] += weight * gradient.to(self.gradient)
        self.count(1, weight)

    def count(self, units: int, weight: float) -> None:
        """Count units of a weight each, whose values `sums_of_products` has added to ``curvature``."""
        numbers = self.next_blocks(units)
        self.weight.index_add_(0, numbers, torch.full_like(numbers, weight, dtype=self.weight.dtype))
        self.units += units

    def compute(self) -> Tensor:
        """Return the weight of each block."""
        return self.weight
