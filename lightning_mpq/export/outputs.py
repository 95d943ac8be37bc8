"""What a model computes, and how far the outputs of a runtime are from it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from ..network.caching import caching
from ..network.modes import evaluating
from .example_inputs import ExampleInputs

_FILL = 100.0
"""How many times as large as all others a number is that was filled in, such as -1e9 at classes that are ruled out."""


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor], runtime: str = "onnxruntime") -> float:
    """Return the largest difference over all outputs, each relative to the largest number in that output.

    What a model fills in, one enormous number at several places, is compared with itself and does not count as largest;
    NaN and infinity must be where they were expected.

    Raises:
        ValueError: If the outputs are not as many, not of the same shapes, or hold nothing that could be compared.

    Example:
        >>> relative_error([torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 4.0])])
        0.25
        >>> relative_error([torch.tensor([3.0, -1e9, -1e9])], [torch.tensor([4.0, -1e9, -1e9])])
        0.25
    """
    shapes = [[list(value.shape) for value in values] for values in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{runtime} returned outputs of shapes {shapes[0]}, PyTorch {shapes[1]}.")
    errors = [
        _error(own.detach().cpu().double(), other.detach().cpu().double())
        for own, other in zip(found, expected, strict=True)
        if other.numel()
    ]
    known = [error for error in errors if error is not None]
    if errors and not known:
        raise ValueError(
            "All that PyTorch computes on these example inputs is NaN or infinite, so that nothing can be compared; "
            "give other inputs."
        )
    return max(known, default=0.0)


def _error(found: Tensor, expected: Tensor) -> float | None:
    """Return the largest relative difference in one output; None if it holds no finite number, and was found so."""
    finite = expected.isfinite()
    same = (found == expected) | (found.isnan() & expected.isnan())
    if not same[~finite].all():
        return inf
    if not finite.any():
        return None
    found, expected = found[finite], expected[finite]
    size = expected.abs()
    filled = _filled(expected, size)
    scale = torch.where(filled, size, size[~filled].max())
    scale = torch.where(scale > 0, scale, 1.0)
    return float(((found - expected).abs().nan_to_num(inf) / scale).max())


def _filled(values: Tensor, size: Tensor) -> Tensor:
    """Return where the largest number stands, if it stands in several places and is far larger than all others."""
    largest = values == values[size.argmax()]
    others = size[~largest]
    several = int(largest.sum()) > 1 and others.numel() > 0
    return largest if several and 0 < _FILL * float(others.max()) <= float(size.max()) else torch.zeros_like(largest)


def flat(outputs: Any) -> list[Tensor]:
    """Return the tensors among a model's outputs, in the order that an export lists them."""
    return [value for value in torch.utils._pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def outputs_of(model: nn.Module, batch: ExampleInputs) -> list[Tensor]:
    """Return the tensors that a model computes in evaluation mode; it is left as it was."""
    with evaluating(model), torch.no_grad(), caching(model, use_cache=False):
        return [value.detach().cpu() for value in flat(batch.call(model))]
