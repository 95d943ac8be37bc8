"""The targets of a batch, at the positions of the outputs that predict them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from .batches import inputs_of
from .forward import TARGETS


def targets_of(batch: Any) -> Tensor | None:
    """Return the targets in a batch: the second item of a tuple or list, or a mapping's ``labels`` or alike."""
    found: Any = None
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        found = batch[1]
    elif isinstance(batch, Mapping):
        found = next((batch[key] for key in TARGETS if key in batch), None)
    return found if isinstance(found, Tensor) else None


def predicted(batch: Any, ignore_index: int) -> Tensor | None:
    """Return the target that each position predicts; None if the batch has none.

    Labels that repeat ``input_ids`` wherever they are not ignored are those of a causal language model of transformers,
    which shifts them itself: position t predicts the label of t + 1, and the last one none.

    Example:
        >>> import torch
        >>> predicted({"input_ids": torch.tensor([[5, 6, 7]]), "labels": torch.tensor([[-100, 6, 7]])}, -100)
        tensor([[   6,    7, -100]])
    """
    targets = targets_of(batch)
    first = inputs_of(batch)
    inputs = first.get("input_ids") if isinstance(first, Mapping) else None
    if targets is None or not isinstance(inputs, Tensor) or inputs.shape != targets.shape or targets.dim() != 2:
        return targets
    counts = targets != ignore_index
    if not bool(counts.any()) or not bool((targets == inputs)[counts].all()):
        return targets
    return pad(targets[:, 1:], (0, 1), value=ignore_index)
