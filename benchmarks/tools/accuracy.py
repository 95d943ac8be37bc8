"""How a quantized classifier does on images beside its float model: accuracy, significance, divergence."""

from __future__ import annotations

from math import sqrt

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

Images = list[tuple[Tensor, Tensor]]
"""Batches of images, [batch, 1, 28, 28], and labels, [batch]."""


@torch.no_grad()
def outputs(model: nn.Module, batches: Images) -> tuple[Tensor, Tensor]:
    """Return log-probabilities, [images, classes] float64, and labels, [images]."""
    model.eval()
    logits = torch.cat([model(images) for images, _ in batches]).double()
    return logits.log_softmax(1), torch.cat([labels for _, labels in batches])


def compare(model: nn.Module, batches: Images, reference: Tensor) -> dict[str, float]:
    """Return what a model loses against its float model.

    Args:
        model: The model to measure.
        batches: Images and labels.
        reference: Log-probabilities of the float model on the same images, [images, classes].

    Returns:
        ``accuracy`` in percent, ``points_lost`` in points, ``p_value`` of McNemar's exact test (two-sided),
        ``divergence``: mean KL(float || model) in nats per image; ``cross_entropy_change``: cross-entropy with the
        labels above that of the float model, in nats per image (less noisy than points).
    """
    found, labels = outputs(model, batches)
    float_right, right = reference.argmax(1) == labels, found.argmax(1) == labels
    worse, better = int((float_right & ~right).sum()), int((~float_right & right).sum())
    own = labels[:, None]
    return {
        "accuracy": 100 * float(right.double().mean()),
        "points_lost": 100 * float(float_right.double().mean() - right.double().mean()),
        "p_value": float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0,
        "divergence": float(divergences(found, reference).mean()),
        "cross_entropy_change": float((reference - found).gather(1, own).mean()),
    }


def divergences(found: Tensor, reference: Tensor) -> Tensor:
    """Return KL(reference || found) of each image, [images], in nats, of log-probabilities [images, classes]."""
    return (reference.exp() * (reference - found)).sum(1)


def standard_error(accuracy: float, images: int = 10_000) -> float:
    """Return the standard error, in points, of an accuracy in 0..1 on so many images."""
    return 100 * sqrt(accuracy * (1 - accuracy) / images)
