"""Weights seen as rows by columns, said in ONNX: an axis that scales run along, or reshaping and transposing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor

ToWeight = Callable[[Tensor], Tensor]
"""[rows, columns] of any type to a weight's own layout."""

Step = tuple[str, list[int]]
"""``("Reshape", sizes)`` or ``("Transpose", permutation)``."""


def axis_of_rows(to_weight: ToWeight, rows: int, columns: int) -> int | None:
    """Return the axis of a weight that its rows run along; None if there is no single one.

    Example:
        >>> axis_of_rows(lambda rows: rows.reshape(3, 2, 2), rows=3, columns=4)
        0
        >>> axis_of_rows(lambda rows: rows.T, rows=3, columns=4)
        1
    """
    row = to_weight(torch.arange(rows).unsqueeze(1).expand(rows, columns))
    for axis, size in enumerate(row.shape):
        along = torch.arange(size).reshape([size if other == axis else 1 for other in range(row.dim())])
        if size == rows and bool((row == along).all()):
            return axis
    return None


def steps_to_weight(to_weight: ToWeight, rows: int, columns: int, groups: int) -> list[Step]:
    """Return how [rows, columns] becomes a weight by reshaping and transposing.

    Every layout in use is a permutation of a few factors of the rows and columns: where an entry comes from is linear
    in its place along each factor, so that the strides tell the order.

    Args:
        to_weight: The layout.
        rows: Output channels.
        columns: Fan-in.
        groups: Groups of a convolution; the first axis of a transposed one runs over groups first.

    Raises:
        ValueError: If the layout is no such permutation.

    Example:
        >>> steps_to_weight(lambda rows: rows.reshape(3, 2, 2), rows=3, columns=4, groups=1)
        [('Reshape', [3, 2, 2])]
        >>> steps_to_weight(lambda rows: rows.T, rows=3, columns=4, groups=1)
        [('Transpose', [1, 0])]
    """
    source = to_weight(torch.arange(rows * columns).reshape(rows, columns))
    shape = list(source.shape)
    factored = source.unflatten(0, (groups, -1))
    sizes = list(factored.shape)
    strides = [_stride(factored, axis) for axis in range(factored.dim())]
    places = sum(
        stride * torch.arange(size).reshape([size if other == axis else 1 for other in range(factored.dim())])
        for axis, (stride, size) in enumerate(zip(strides, sizes, strict=True))
    )
    if not torch.equal(places.expand(sizes), factored):  # type: ignore[union-attr]
        raise ValueError("the layout of its weight is no permutation of rows and columns")
    kept = [axis for axis, size in enumerate(sizes) if size > 1] or [0]
    order = sorted(kept, key=lambda axis: -strides[axis])
    steps: list[Step] = [
        ("Reshape", [sizes[axis] for axis in order]),
        ("Transpose", [order.index(axis) for axis in kept]),
        ("Reshape", shape),
    ]
    return _without_idle(steps, [rows, columns])


def _stride(values: Tensor, axis: int) -> int:
    first = values.select(axis, 0).flatten()[0]
    return int(values.select(axis, 1).flatten()[0] - first) if values.shape[axis] > 1 else 0


def _without_idle(steps: Sequence[Step], shape: list[int]) -> list[Step]:
    """Drop steps that change nothing, and all but the last of reshapes in a row."""
    moving = [step for step in steps if step[0] == "Reshape" or step[1] != sorted(step[1])]
    kept: list[Step] = []
    for step in moving:
        if step[0] == "Reshape" and kept and kept[-1][0] == "Reshape":
            kept.pop()
        if step[0] == "Reshape" and step[1] == _shape_after(kept, shape):
            continue
        kept.append(step)
    assert prod(_shape_after(kept, shape)) == prod(shape)
    return kept


def _shape_after(steps: Sequence[Step], shape: list[int]) -> list[int]:
    for operation, argument in steps:
        shape = argument if operation == "Reshape" else [shape[axis] for axis in argument]
    return shape
