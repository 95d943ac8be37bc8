"""What users of a network would notice, on samples that the quantization has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Quality = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Any]], dict[str, float]]
"""(Outputs of the float model by batch, of the quantized one, batches) to name and figure."""
BETTER_ABOVE = ("cosine", "neighbours", "agreement")
"""Figures of which more is better."""
BETTER_BELOW = ("divergence", "divergence_99", "perplexity")
"""Figures of which less is better."""


def of_embeddings(reference: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Any]) -> dict[str, float]:
    """Return mean cosine to the float embeddings, and the share of samples whose nearest other sample stays the same.

    Example:
        >>> corners = [torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])]
        >>> of_embeddings(corners, corners, [None])["neighbours"]
        1.0
    """
    one, two = (torch.nn.functional.normalize(torch.cat(list(part)).double(), dim=1) for part in (reference, found))
    return {
        "cosine": float((one * two).sum(1).mean()),
        "neighbours": float((_nearest(one) == _nearest(two)).double().mean()),
    }


def _nearest(rows: Tensor) -> Tensor:
    return (rows @ rows.T).fill_diagonal_(-1).argmax(1)


def of_classes(reference: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Any]) -> dict[str, float]:
    """Return how often the first class is the float model's, and the divergence from it in nats."""
    one, two = (torch.cat(list(part)).double().log_softmax(1) for part in (reference, found))
    divergence = (one.exp() * (one - two)).sum(1)
    return {
        "agreement": float((one.argmax(1) == two.argmax(1)).double().mean()),
        "divergence": float(divergence.mean()),
    }


def of_tokens(reference: Sequence[Tensor], found: Sequence[Tensor], batches: Sequence[Any]) -> dict[str, float]:
    """Return perplexity, and mean and 99th percentile of the divergence at each token, of logits [n, classes, length].

    Batches are token numbers [n, length].
    """
    losses, divergences = [], []
    for one, two, tokens in zip(reference, found, batches, strict=True):
        was, now = one.log_softmax(1), two.log_softmax(1)
        divergences.append((was.exp() * (was - now)).sum(1).flatten())
        losses.append(-now[:, :, :-1].gather(1, tokens[:, None, 1:]).flatten())
    divergence = torch.cat(divergences).double()
    return {
        "perplexity": float(torch.cat(losses).double().mean().exp()),
        "divergence": float(divergence.mean()),
        "divergence_99": float(divergence.quantile(0.99)),
    }
