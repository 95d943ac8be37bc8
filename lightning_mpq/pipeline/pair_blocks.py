"""The terms between groups, summed over blocks of neighbouring groups: small enough to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..curvature import TaylorModel
from ..policy import BitPolicy
from ..report.frontier_record import PairBlocks

MOST_BLOCKS = 32


def pair_blocks(taylor: TaylorModel, policy: BitPolicy) -> PairBlocks:
    """Return what blocks of groups add to the predicted loss of a policy, by themselves and with each other.

    Args:
        taylor: The model as it was measured.
        policy: One of its policies.
    """
    chosen = taylor.indices(policy)
    pairs = taylor.curvature[chosen][:, chosen].numpy()
    alone = taylor.gradient[chosen].numpy() + pairs.diagonal() / 2
    blocks = blocks_of([group.name for group in taylor.groups])
    ends = [block[0] for block in blocks]
    between = _summed(pairs - np.diag(pairs.diagonal()), ends)
    # Within a block each pair stands twice in the sum.
    loss = between + np.diag(np.add.reduceat(alone, ends) - between.diagonal() / 2)
    noise = None
    if taylor.curvature_error is not None:
        squares = taylor.curvature_error[chosen][:, chosen].double().square().numpy()
        summed = _summed(squares, ends)
        within = summed.diagonal() / 2 - np.add.reduceat(squares.diagonal(), ends) / 4
        noise = np.sqrt(summed - np.diag(summed.diagonal() - within))
    return PairBlocks(
        names=tuple(name_of([taylor.groups[at].name for at in block]) for block in blocks),
        loss=_rows(loss),
        noise=None if noise is None else _rows(noise),
    )


def blocks_of(names: Sequence[str]) -> list[range]:
    """Return runs of neighbours, at most `MOST_BLOCKS`: by the longest common start of dotted names that is enough.

    Example:
        >>> blocks_of(["conv1", "block.a", "block.b"])
        [range(0, 1), range(1, 2), range(2, 3)]
    """
    for depth in range(max(name.count(".") for name in names) + 1, 0, -1):
        starts = [0]
        for at in range(1, len(names)):
            if names[at].split(".")[:depth] != names[at - 1].split(".")[:depth]:
                starts.append(at)
        if len(starts) <= MOST_BLOCKS:
            return _between(starts, len(names))
    return _between(np.linspace(0, len(names), MOST_BLOCKS, endpoint=False).astype(int).tolist(), len(names))


def name_of(names: Sequence[str]) -> str:
    """Return a name for neighbours: what their names begin with, or the first and the last.

    Example:
        >>> name_of(["block.a", "block.b"]), name_of(["stem", "block.a"])
        ('block', 'stem ... block.a')
    """
    if len(names) == 1:
        return names[0]
    shared = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared) or f"{names[0]} ... {names[-1]}"


def _summed(matrix: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Return the sums over blocks, [B, B]."""
    return np.add.reduceat(np.add.reduceat(matrix, starts, axis=0), starts, axis=1)


def _between(starts: Sequence[int], end: int) -> list[range]:
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], end], strict=True)]


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(short, row)) for row in matrix)


def short(value: float) -> float:
    """Return a number to four digits, which is more than is known of it."""
    return float(f"{value:.4g}")
