"""How a quantized classifier does on images beside its float model: accuracy, significance, divergence."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from .networks import Images


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
        "divergence": float((reference.exp() * (reference - found)).sum(1).mean()),
        "cross_entropy_change": float((reference - found).gather(1, own).mean()),
    }


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    found = list(values)
    return sum(found) / len(found)
