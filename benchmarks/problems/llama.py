"""Random models of the Llama architecture, in sizes of published ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Shape(NamedTuple):
    """Sizes of a Llama model.

    Attributes:
        vocabulary: Tokens.
        width: Of the hidden states.
        layers: Number of blocks.
        inner: Width within the perceptron of a block.
        heads: Of the queries.
        key_heads: Of keys and values.
        tied: Whether embedding and output share a weight.
    """

    vocabulary: int
    width: int
    layers: int
    inner: int
    heads: int
    key_heads: int
    tied: bool = True


SHAPES = {
    "tiny": Shape(256, 64, 2, 160, 4, 2),
    "10M": Shape(8192, 256, 11, 704, 4, 2),
    "30M": Shape(16384, 512, 8, 1408, 8, 4),
    "135M": Shape(49152, 576, 30, 1536, 9, 3),
    "360M": Shape(49152, 960, 32, 2560, 15, 5),
    "1B": Shape(128256, 2048, 16, 8192, 32, 8),
    "8B": Shape(128256, 4096, 32, 14336, 32, 8, tied=False),
}
"""By about how many weights they have; 135M and 360M are those of SmolLM2, 1B and 8B those of Llama 3."""


def random_llama(
    name: str, dtype: torch.dtype = torch.float32, device: str = "cpu", blocks: int | None = None
) -> nn.Module:
    """Return an untrained model in evaluation mode.

    Args:
        name: One of `SHAPES`.
        dtype: Type of its weights.
        device: Where they lie; they are made there.
        blocks: How many; None for all.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES[name]
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=blocks or shape.layers,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model: nn.Module = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def random_tokens(name: str, batches: int, samples: int, length: int, device: str = "cpu") -> list[dict[str, Tensor]]:
    """Return batches of random tokens, [samples, length]."""
    generator = torch.Generator().manual_seed(0)
    size = (samples, length)
    drawn = [torch.randint(0, SHAPES[name].vocabulary, size, generator=generator) for _ in range(batches)]
    return [{"input_ids": tokens.to(device)} for tokens in drawn]


def training_step(model: Any, batch: dict[str, Tensor]) -> None:
    """Take a training step without an optimizer: a forward and a backward pass, whose gradients are dropped."""
    model.requires_grad_(True)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    model.zero_grad(set_to_none=True)
