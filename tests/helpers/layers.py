"""Layers of every kind at awkward sizes, with an input each: what every packed type is tested on."""

import copy
from collections.abc import Callable

import torch
from helpers.numbers import assert_agree
from helpers.wrapped_layers import Centred, SamePadding, ScaledEmbedding
from torch import Tensor, nn

from lightning_mpq.modules import pack_layer
from lightning_mpq.network.layer_kinds import rows_to_weight, weight_rows
from lightning_mpq.quantizers import quantize_rows
from lightning_mpq.schemes import WeightScheme

Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]

LAYER_CASES: dict[str, Case] = {
    "linear": (lambda: nn.Linear(13, 5), lambda: torch.randn(3, 13)),
    "linear-no-bias": (lambda: nn.Linear(8, 1, bias=False), lambda: torch.randn(2, 4, 8)),
    "conv1d": (lambda: nn.Conv1d(3, 5, 3, padding="same"), lambda: torch.randn(2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 7, 3, stride=2, padding=1, dilation=2), lambda: torch.randn(2, 3, 9, 8)),
    "conv2d-groups": (lambda: nn.Conv2d(4, 6, (3, 1), groups=2), lambda: torch.randn(2, 4, 5, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(5, 5, 3, groups=5), lambda: torch.randn(1, 5, 4, 4)),
    "conv2d-circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        lambda: torch.randn(1, 2, 4, 5),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding=1), lambda: torch.randn(1, 2, 3, 3, 3)),
    "conv-transpose1d": (lambda: nn.ConvTranspose1d(3, 5, 3, stride=2), lambda: torch.randn(2, 3, 5)),
    "conv-transpose2d-groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
        lambda: torch.randn(1, 4, 3, 3),
    ),
    "conv-transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, bias=False), lambda: torch.randn(1, 2, 2, 2, 2)),
    "embedding": (lambda: nn.Embedding(11, 7, padding_idx=0), lambda: torch.randint(0, 11, (2, 5))),
    "embedding-byte-rows": (lambda: nn.Embedding(9, 16), lambda: torch.randint(0, 9, (4,))),
    "conv2d-same-padding": (lambda: SamePadding(3, 4, 3, stride=2), lambda: torch.randn(2, 3, 6, 5)),
    "linear-centred": (lambda: Centred(13, 5), lambda: torch.randn(3, 13)),
    "embedding-scaled": (lambda: ScaledEmbedding(9, 16), lambda: torch.randint(0, 8, (4,))),
    "embedding-max-norm": (lambda: nn.Embedding(6, 8, max_norm=0.5), lambda: torch.randint(0, 6, (3, 1))),
}


LAYER_SCHEMES = [
    WeightScheme(3, "channel", "half"),
    WeightScheme(5, 4, "asymmetric", scale_dtype="float16"),
    WeightScheme(8, "tensor", "symmetric", scale_dtype="float32"),
]


def packed_and_oracle(kind: str, scheme: WeightScheme, dtype: torch.dtype = torch.float32) -> tuple:
    """Return a packed layer, its oracle (the float layer with dequantized weights), and an input."""
    torch.manual_seed(0)
    layer = LAYER_CASES[kind][0]().to(dtype)
    inputs = LAYER_CASES[kind][1]()
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    quantized = quantize_rows(weight_rows(layer), scheme)
    packed = pack_layer(layer, quantized)
    oracle = copy.deepcopy(layer)
    weight = rows_to_weight(oracle, quantized.dequantize(dtype), oracle.weight.shape)
    oracle.weight.data = weight.contiguous().clone()
    return packed, oracle, inputs


def assert_exports_and_compiles(layer: nn.Module, inputs: Tensor, expected: Tensor) -> None:
    """Export a layer, strictly and not, and compile it whole: all compute what is expected."""
    for strict in (True, False):
        program = torch.export.export(layer, (inputs,), strict=strict)
        assert_agree(program.module()(inputs), expected)
    torch._dynamo.reset()
    assert_agree(torch.compile(layer, fullgraph=True, backend="aot_eager")(inputs), expected)
