"""A small vision transformer for 28x28 images: LayerNorm and attention, and no BatchNorm to repair."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchTransformer(nn.Module):
    """Patches of the image as tokens, pre-norm encoder layers, mean over tokens.

    A. Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, with mean pooling.

    Args:
        width: Length of a token.
        depth: Encoder layers.
        heads: Attention heads.
        patch: Pixels on a side of a patch; must divide 28.
        num_classes: Length of the output.
    """

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 4, num_classes: int = 10) -> None:
        """Make the layers."""
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn(1, (28 // patch) ** 2, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images, [batch, 1, 28, 28], to logits, [batch, num_classes]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens).mean(dim=1))
