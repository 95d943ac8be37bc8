"""Random image classifiers in the shapes of ResNet-50 and ViT-B/16, and small ones of the same architectures."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


def random_classifier(name: str, dtype: torch.dtype, device: str, tiny: bool = False) -> nn.Module:
    """Return an untrained model in evaluation mode.

    Args:
        name: ``"resnet50"`` or ``"vit_b"``.
        dtype: Type of its weights.
        device: Where they lie.
        tiny: Whether it has few and narrow layers instead.
    """
    transformers: Any = import_module("transformers")  # whose types do not know what its configurations take
    torch.manual_seed(0)
    model: nn.Module
    if name == "resnet50":
        sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]} if tiny else {}
        model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=1000))
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
        config = transformers.ViTConfig(**(sizes if tiny else {}), image_size=224, num_labels=1000)
        model = transformers.ViTForImageClassification(config)
    return model.to(device, dtype).eval()


def random_images(batches: int, samples: int, dtype: torch.dtype, device: str) -> list[dict[str, Tensor]]:
    """Return batches of noise, [samples, 3, 224, 224]."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(samples, 3, 224, 224, generator=generator) for _ in range(batches)]
    return [{"pixel_values": images.to(device, dtype)} for images in drawn]
