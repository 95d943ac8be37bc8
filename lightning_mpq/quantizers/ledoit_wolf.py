"""How uncertain a moment is, and the damping that answers to it.

O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of Multivariate
Analysis 88, 2004: of all (1 - r) M + r m I, m the mean of M's diagonal, the one nearest to the true moment by Frobenius
norm has ``r = E|M - E M|^2 / E|M - m I|^2``. Dividing by 1 - r turns it into a damping of r / (1 - r). The paper takes
rows to be independent. Those of one sample are not, so that sums over whole batches are compared here.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..tools.distributed import sum_over_ranks

UNKNOWN = 0.01
"""Where nothing tells how uncertain a moment is."""
LEAST, MOST = 0.001, 10.0


@dataclass
class Spread:
    """How far sums of x x^T over several independent parts of the samples lie apart.

    Attributes:
        squares: Sum of the squared Frobenius norms of these sums, [groups].
        squared_counts: Sum of their squared numbers of rows, [groups].
    """

    squares: Tensor
    squared_counts: Tensor

    @classmethod
    def zero(cls, like: Tensor) -> Spread:
        """Return that of no part, for as many groups as a tensor [groups, ...] has."""
        return cls(like.new_zeros(len(like)), like.new_zeros(len(like)))

    def add(self, parts: slice, sums: Tensor, count: int) -> None:
        """Add the sums of one part, [groups, columns, columns], over so many rows, to some of the groups."""
        self.squares[parts] += sums.square().sum((1, 2))
        self.squared_counts[parts] += count**2

    def plus(self, other: Spread) -> Spread:
        """Return the spread of the parts of both."""
        return Spread(self.squares + other.squares, self.squared_counts + other.squared_counts)

    def over_ranks(self) -> Spread:
        """Return that of the parts that all processes saw; every rank must call it."""
        return Spread(sum_over_ranks(self.squares), sum_over_ranks(self.squared_counts))

    def damping(self, moment: Tensor, counts: Tensor) -> float:
        """Return the damping for a moment, in units of the mean of its diagonal.

        With M the mean over N rows and n of them in a sum S, ``E sum |S|^2 = q |E M|^2 + N v`` and
        ``E |M|^2 = |E M|^2 + v / N``, where q = sum n^2 and v is the variance of one row's x x^T. That gives v / N.

        Args:
            moment: M, [groups, columns, columns]; the damping is one for all groups.
            counts: N, [groups].
        """
        mean = moment.diagonal(dim1=1, dim2=2).mean(1)
        known = (counts.square() > self.squared_counts) & (mean > 0)
        if not known.any():
            return UNKNOWN
        norm, unit = moment.square().sum((1, 2))[known], mean[known].square()
        number, square = counts[known].square(), self.squared_counts[known]
        variance = float(((self.squares[known] - square * norm) / (number - square) / unit).sum())
        distance = float((norm / unit - moment.shape[1]).sum())
        if not (distance > 0 and variance < float("inf")):  # a multiple of the identity, or too large to square
            return UNKNOWN
        share = max(variance / distance, 0.0)
        return MOST if share >= 1 else min(max(share / (1 - share), LEAST), MOST)
