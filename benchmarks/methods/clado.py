"""CLADO's matrix: pairs of layers by finite differences of the true loss (arXiv:2307.05657, equations 9 to 12).

Written from its publication, for the very candidates that others are given: ``G_ij = L(w + d_i + d_j) + L(w) -
L(w + d_i) - L(w + d_j)`` and ``G_ii = 2 (L(w + d_i) - L(w))``, without negative eigenvalues. It takes a forward pass
over all samples for each pair of candidates of two layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor


def clado_matrix(
    weights: Mapping[str, Tensor], groups: Sequence[str], errors: Sequence[Tensor], loss: Callable[[], float]
) -> Tensor:
    """Return the matrix of all candidates, [K, K] float64, positive semidefinite.

    Args:
        weights: Weight of each layer; changed in place meanwhile.
        groups: The layer of each candidate.
        errors: Quantized weight minus float weight of each candidate.
        loss: Returns the loss of the model as it is.

    Example:
        >>> w = {"a": torch.zeros(1), "b": torch.zeros(1)}
        >>> def square() -> float:
        ...     return float((w["a"] + w["b"]).square())
        >>> clado_matrix(w, ["a", "b"], [torch.ones(1), torch.ones(1)], square).round().tolist()
        [[2.0, 2.0], [2.0, 2.0]]
    """

    @contextmanager
    def moved(*chosen: int) -> Iterator[None]:
        before = {groups[index]: weights[groups[index]].clone() for index in chosen}
        with torch.no_grad():
            for index in chosen:
                weights[groups[index]].add_(errors[index])
            yield
            for name, value in before.items():
                weights[name].copy_(value)

    base = loss()
    alone = []
    for index in range(len(groups)):
        with moved(index):
            alone.append(loss() - base)
    matrix = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for i, j in combinations(range(len(groups)), 2):
        if groups[i] == groups[j]:
            continue
        with moved(i, j):
            matrix[i, j] = matrix[j, i] = loss() - base - alone[i] - alone[j]
    matrix += torch.diag(2 * torch.tensor(alone, dtype=torch.float64))
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0)) @ vectors.T
