"""torchao's quantization-aware training of the Linear layers of a network, weights only, one scale a channel."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ...tools.accuracy import Images
from .prepared import Prepared, Stored, plain_linear_layers


def torchao_dynamic(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Prepare torchao's usual training: scales from the largest weights at each step, straight-through rounding."""
    return _prepared(network, bits, learn_ranges=False)


def torchao_learned(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Prepare torchao's training with learned scales, which it calls range learning and a prototype."""
    return _prepared(network, bits, learn_ranges=True, example=batches[0][0][:2])


def torchao_weights(network: nn.Module, bits: int) -> dict[str, Any]:
    """Return the weights of the plain Linear layers as torchao rounds them; the network stays as it is."""
    from torchao.quantization import quantize_

    names = plain_linear_layers(network)
    rounded = copy.deepcopy(network)
    with warnings.catch_warnings(action="ignore"):
        quantize_(rounded, _weight_only(bits), filter_fn=lambda _, name: name in names)
    return {name: rounded.get_submodule(name).weight for name in names}


def _prepared(network: nn.Module, bits: int, learn_ranges: bool, example: Tensor | None = None) -> Prepared:
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig, initialize_fake_quantizers

    names = set(plain_linear_layers(network))
    weights = IntxFakeQuantizeConfig(
        getattr(torch, f"int{bits}"),
        "per_channel",
        is_symmetric=True,
        is_dynamic=not learn_ranges,
        range_learning=learn_ranges,
    )
    quantize_(network, QATConfig(weight_config=weights, step="prepare"), filter_fn=lambda _, name: name in names)
    scales: list[nn.Parameter] = []
    if learn_ranges:
        with torch.no_grad():
            initialize_fake_quantizers(network, (example,))
        scales = [value for name, value in network.named_parameters() if name.endswith("weight_fake_quantizer.scale")]

    def convert() -> Stored:
        with warnings.catch_warnings(action="ignore"):
            quantize_(network, QATConfig(_weight_only(bits), step="convert"), filter_fn=lambda _, name: name in names)
        found: list[Any] = [network.get_submodule(name).weight for name in names]
        count = sum(weight.numel() for weight in found)
        scale_bits = sum(8 * weight.scale.numel() * weight.scale.element_size() for weight in found)
        parts = [getattr(weight, name) for weight in found for name in weight.__tensor_flatten__()[0]]
        held = sum(8 * value.numel() * value.element_size() for value in parts)
        return Stored(bits + scale_bits / count, held / count)

    return Prepared(scales, convert)


def _weight_only(bits: int) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis

    return IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerAxis(0))
