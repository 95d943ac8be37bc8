"""A network like MiniLM, for quick runs."""

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
