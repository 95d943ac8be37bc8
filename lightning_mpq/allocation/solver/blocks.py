r"""Block-diagonal symmetric matrices, one block a group, and what Newton steps ask of them.

Blocks of one length are stored together, [count, k, k], so that one numpy call works on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .problem import Array, Indices

Blocks = list[Array]
"""Matrices [count, k, k], one entry for each length k."""
_CHUNK = 2**19
"""Entries of the intermediate product in `BlockStructure.sandwich`, which stay in the cache."""


class BlockStructure:
    """Where the blocks of a vector and of a matrix lie.

    Args:
        block: Block of each variable, ascending from 0; blocks of one length must be neighbours.
    """

    def __init__(self, block: Indices) -> None:
        """Find the blocks of each length."""
        length = np.bincount(block)
        start = np.cumsum(length) - length
        self.size = len(block)
        self.index: list[Indices] = [start[length == k][:, None] + np.arange(k) for k in np.unique(length[length > 0])]
        self.part = [slice(int(index[0, 0]), int(index[-1, -1]) + 1) for index in self.index]
        self._upper = [np.triu_indices(index.shape[1]) for index in self.index]
        self._weight = [np.where(a == b, 1.0, np.sqrt(2.0)) for a, b in self._upper]

    def gather(self, matrix: Array) -> Blocks:
        """Return the diagonal blocks of a matrix."""
        return [matrix[index[:, :, None], index[:, None, :]] for index in self.index]

    def put(self, blocks: Sequence[Array], matrix: Array) -> None:
        """Write blocks into a matrix."""
        for index, block in zip(self.index, blocks, strict=True):
            matrix[index[:, :, None], index[:, None, :]] = block

    def split(self, vector: Array) -> list[Array]:
        """Return the parts of a vector, [count, k] for each length."""
        return [vector[part].reshape(index.shape) for part, index in zip(self.part, self.index, strict=True)]

    def diagonal(self, blocks: Sequence[Array]) -> Array:
        """Return the diagonal of a block-diagonal matrix, [n]."""
        return np.concatenate([np.einsum("laa->la", block).ravel() for block in blocks])

    def times(self, blocks: Sequence[Array], vector: Array) -> Array:
        """Return a block-diagonal matrix times a vector."""
        parts = zip(blocks, self.split(vector), strict=True)
        return np.concatenate([np.matmul(block, part[:, :, None]).ravel() for block, part in parts])

    def pack(self, blocks: Sequence[Array]) -> Array:
        """Return symmetric blocks as coordinates whose scalar product is that of matrices."""
        parts = zip(blocks, self._upper, self._weight, strict=True)
        return np.concatenate([(block[:, a, b] * weight).ravel() for block, (a, b), weight in parts])

    def unpack(self, coordinates: Array) -> Blocks:
        """Return the symmetric blocks of coordinates."""
        blocks, begin = [], 0
        for index, (a, b), weight in zip(self.index, self._upper, self._weight, strict=True):
            count, k = index.shape
            end = begin + count * len(weight)
            values = coordinates[begin:end].reshape(count, -1) / weight
            block = np.empty((count, k, k))
            block[:, a, b] = values
            block[:, b, a] = values
            blocks.append(block)
            begin = end
        return blocks

    def basis(self, place: int) -> tuple[Indices, Indices, Array]:
        """Return for the blocks of one length the pairs a <= b of each coordinate and the weight of its entries."""
        a, b = self._upper[place]
        return a, b, np.where(a == b, 0.5, np.sqrt(0.5))

    def pairs(self) -> tuple[Indices, Indices, Array]:
        """Return the same for all blocks, in the order of the coordinates, as numbers of variables."""
        parts = [
            (index[:, a].ravel(), index[:, b].ravel()) for index, (a, b) in zip(self.index, self._upper, strict=True)
        ]
        a, b = (np.concatenate(part) for part in zip(*parts, strict=True))
        return a, b, np.where(a == b, 0.5, np.sqrt(0.5))

    def sandwich(self, K: Array, blocks: Sequence[Array]) -> Blocks:
        """Return the diagonal blocks of ``K D K`` for a dense symmetric K and a block-diagonal D, in n^2 k steps."""
        result = []
        for index, part in zip(self.index, self.part, strict=True):
            count, k = index.shape
            found = np.empty((count, k, k))
            step = max(1, _CHUNK // (k * self.size))
            for begin in range(0, count, step):
                rows = K[part][begin * k : (begin + step) * k]
                product = np.empty_like(rows)
                for other, place, block in zip(self.index, self.part, blocks, strict=True):
                    width = other.shape[1]
                    wide = rows[:, place].reshape(len(rows), len(other), width).transpose(1, 0, 2)
                    product[:, place].reshape(len(rows), len(other), width)[...] = np.matmul(wide, block).transpose(
                        1, 0, 2
                    )
                shape = (-1, k, self.size)
                found[begin : begin + step] = np.matmul(product.reshape(shape), rows.reshape(shape).transpose(0, 2, 1))
            result.append(found)
        return result
