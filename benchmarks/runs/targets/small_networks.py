"""Networks like MiniLM and EfficientNet, for quick runs."""

from __future__ import annotations

from torch import Tensor, nn


class SmallEncoder(nn.Module):
    """Something like MiniLM, to see that everything runs."""

    def __init__(self) -> None:
        """Draw weights."""
        super().__init__()
        self.embeddings = nn.Embedding(64, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return unit vectors [n, width]."""
        return nn.functional.normalize(self.encoder(self.embeddings(tokens)).mean(1), dim=1)


def small_classifier() -> nn.Module:
    """Return something like EfficientNet, for images [n, 3, height, width]."""
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU6())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
