"""What a model computes, and how far the outputs of a runtime are from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..network.caching import caching
from ..network.modes import evaluating
from .example_inputs import ExampleInputs


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor], runtime: str = "onnxruntime") -> float:
    """Return the largest difference over all outputs, each relative to the largest number in that output.

    Raises:
        ValueError: If the outputs are not as many, or not of the same shapes.

    Example:
        >>> relative_error([torch.tensor([1.0, 3.0])], [torch.tensor([1.0, 4.0])])
        0.25
    """
    shapes = [[list(value.shape) for value in values] for values in (found, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{runtime} returned outputs of shapes {shapes[0]}, PyTorch {shapes[1]}.")
    worst = 0.0
    for own, other in zip(found, expected, strict=True):
        if other.numel():
            wide = other.detach().cpu().double()
            difference = (own.double() - wide).abs().nan_to_num(torch.inf)
            worst = max(worst, float(difference.max()) / (float(wide.abs().max()) or 1.0))
    return worst


def flat(outputs: Any) -> list[Tensor]:
    """Return the tensors among a model's outputs, in the order that an export lists them."""
    return [value for value in torch.utils._pytree.tree_leaves(outputs) if isinstance(value, Tensor)]


def outputs_of(model: nn.Module, batch: ExampleInputs) -> list[Tensor]:
    """Return the tensors that a model computes in evaluation mode; it is left as it was."""
    with evaluating(model), torch.no_grad(), caching(model, use_cache=False):
        return [value.detach().cpu() for value in flat(batch.call(model))]
