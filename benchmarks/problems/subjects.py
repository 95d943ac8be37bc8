"""Three pretrained networks with calibration batches and unseen ones, and a made-up one for a quick run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_mpq import Gaussian, Likelihood

from ..recorded_instances.pretrained import NETWORKS, Network
from ..recorded_instances.wrapped_networks import made_up_network
from ..tools.quality import Quality, of_classes, of_embeddings, of_tokens

UNSEEN = {"made_up": 64, "minilm": 256, "efficientnet_lite0": 256, "smollm2": 64}
"""Samples that quality is measured on."""
_QUALITY: dict[str, Quality] = {
    "made_up": of_embeddings,
    "minilm": of_embeddings,
    "efficientnet_lite0": of_classes,
    "smollm2": of_tokens,
}


class Subject(NamedTuple):
    """What is quantized.

    Attributes:
        model: The float model.
        calibration: Batches to quantize on.
        unseen: Other batches.
        likelihood: What the outputs mean.
        quality: What is measured on the unseen batches.
    """

    model: nn.Module
    calibration: list[Any]
    unseen: list[Any]
    likelihood: Likelihood
    quality: Quality


class WithMask(nn.Module):
    """Takes the batches that a tokenizer of transformers makes, in which the mask says what is padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embedding of each row of token numbers [n, length], of which 0 is padding."""
        found: Tensor = self.encoder(input_ids)
        return found


def subject(name: str, texts: Path | None, samples: int) -> Subject:
    """Load a network with calibration samples and, after them, unseen ones.

    Raises:
        ImportError: If a package is missing that holds it or reads it.
    """
    load = _made_up if name == "made_up" else partial(NETWORKS[name], texts or Path())
    model, loaded, likelihood = load(samples + UNSEEN[name])
    batches: list[Any] = loaded
    if name == "minilm":
        model = WithMask(model).eval()
        batches = [{"input_ids": tokens, "attention_mask": (tokens != 0).long()} for tokens in loaded]
    count = samples // _size(batches[0])
    if count * _size(batches[0]) != samples or sum(map(_size, batches)) != samples + UNSEEN[name]:
        raise ValueError(
            f"Expected {samples} calibration samples and {UNSEEN[name]} others in batches of {_size(batches[0])}, got "
            f"{sum(map(_size, batches))} in all: ask for fewer, or for a multiple of the batch size."
        )
    return Subject(model, batches[:count], batches[count:], likelihood, _QUALITY[name])


def _size(batch: Any) -> int:
    return len(batch["input_ids"] if isinstance(batch, dict) else batch)


def _made_up(samples: int) -> Network:
    torch.manual_seed(0)
    return made_up_network().eval(), list(torch.randn(samples, 12).split(8)), Gaussian(1.0)
