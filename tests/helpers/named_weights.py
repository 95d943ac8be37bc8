"""Modules that keep weights under names of their own: attention, recurrent and registered layers."""

import torch
from torch import Tensor, nn

from lightning_mpq.network.named_weights import named_layers, register_layer


class Gated(nn.Module):
    """Two weights, neither called ``weight``; output channels of both along dimension 1."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.randn(6, 5))
        self.gate = nn.Parameter(torch.randn(6, 5))

    def forward(self, x):
        return (x @ self.value) * (x @ self.gate).sigmoid()


class Twisted(nn.Module):
    """One weight called ``weight``, read by a forward of its own."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.offset = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return x.roll(1, -1) @ self.weight.T + self.offset


register_layer(Gated, ["value", "gate"], linear=False, output_dim=1)
register_layer(Twisted)


class CrossAttention(nn.Module):
    """Attention to keys and values of other widths, so that the three projections are weights of their own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5)

    def forward(self, x):
        return self.attention(x, x[..., :6], x[..., :5], need_weights=False)[0]


CASES = {
    "attention": (CrossAttention, (3, 2, 8)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (2, 3, 8)),
    "norm-first": (lambda: nn.TransformerEncoderLayer(8, 2, 12, norm_first=True, bias=False), (3, 2, 8)),
    "stack": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), (2, 3, 8)),
    "lstm": (lambda: nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3), (3, 2, 8)),
    "gru": (lambda: nn.GRU(8, 5, batch_first=True), (3, 2, 8)),
    "rnn": (lambda: nn.RNN(8, 5, bias=False), (3, 2, 8)),
    "cell": (lambda: nn.LSTMCell(8, 5), (3, 8)),
    "gated": (lambda: nn.Sequential(nn.Linear(8, 6), Gated()), (3, 8)),
    "twisted": (lambda: nn.Sequential(nn.Linear(8, 6), Twisted()), (3, 8)),
}
"""How each is made, and the shape of its input."""


def make(case: str) -> tuple[nn.Module, Tensor]:
    """Return a module in eval mode and an input."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    return build().eval(), torch.randn(shape)


def weights_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layer, or view, of every weight with more than one dimension by name."""
    layers = named_layers(model).items()
    own = {name: layer for name, layer in layers if isinstance(getattr(layer, "weight", None), nn.Parameter)}
    return {name: layer for name, layer in own.items() if layer.weight.dim() > 1}


def first(outputs: Tensor | tuple) -> Tensor:
    """Return the outputs of a module that may return its state as well."""
    return outputs[0] if isinstance(outputs, tuple) else outputs
