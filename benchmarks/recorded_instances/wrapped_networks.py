"""Pretrained networks as benchmarks call them: one tensor in, one out, and layers of plain types. Needs torch alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SentenceEncoder(nn.Module):
    """A transformer whose mean token state, of unit length, is the output [n, width]."""

    def __init__(self, encoder: nn.Module) -> None:
        """Wrap an encoder."""
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the embedding of each row of token numbers [n, length]; 0 is padding."""
        mask = (tokens != 0).to(torch.long)
        states = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        weight = mask[:, :, None].to(states)
        return nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


class LanguageModel(nn.Module):
    """A causal language model whose logits [n, classes, length] are the output."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model."""
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the token behind each of [n, length]."""
        return self.model(input_ids=tokens, use_cache=False).logits.transpose(1, 2)


def with_plain_convolutions(net: nn.Module) -> nn.Module:
    """Turn convolutions that pad in a forward of their own into padding and a plain convolution, in place."""
    for parent in list(net.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Conv2d) and hasattr(layer, "static_padding"):
                plain = nn.Conv2d(
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,  # type: ignore[arg-type]
                    tuple(layer.stride),  # type: ignore[arg-type]
                    groups=layer.groups,
                    bias=layer.bias is not None,
                )
                plain.load_state_dict({key: value for key, value in layer.state_dict().items() if "." not in key})
                sides = getattr(layer.static_padding, "padding", (0, 0, 0, 0))
                setattr(parent, name, nn.Sequential(nn.ZeroPad2d(sides), plain))
    return net


def made_up_network() -> nn.Module:
    """Return a tiny network of Linear layers, from 12 numbers to 8, for quick runs."""
    return nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
