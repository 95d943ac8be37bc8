"""Sums over units of data from which means and their standard errors follow; they add up over processes and files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ..distributed import sum_over_ranks

_CHUNK_ELEMENTS = 2**24
"""Elements of per-sample matrices [n, K, K] that are made at once (128 MiB of float64)."""


def sums_of_products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``sum_n P_n`` and ``sum_n P_n * P_n`` (entry by entry) of per-sample matrices ``P_n = R_n^T R_n``.

    Args:
        rows: R, [N, rows, K].

    Returns:
        Two matrices [K, K], float64.
    """
    samples, count, width = rows.shape
    if count == 1:
        flat = _wide(rows[:, 0])
        squared = flat.square()
        return flat.T @ flat, squared.T @ squared
    first = torch.zeros(width, width, dtype=torch.float64, device=_wide(rows[:0]).device)
    second = torch.zeros_like(first)
    for part in rows.split(max(1, _CHUNK_ELEMENTS // (width * max(width, count)))):
        wide = _wide(part)
        products = wide.transpose(1, 2) @ wide
        first += products.sum(0)
        second += products.square_().sum(0)
    return first, second


def _wide(values: Tensor) -> Tensor:
    """Return values in float64, on the CPU if their device has no such type."""
    return values.to("cpu", torch.float64) if values.device.type == "mps" else values.double()


class WeightedMoments(Metric):
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

    full_state_update = False
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
