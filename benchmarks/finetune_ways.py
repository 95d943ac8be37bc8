"""Ways of fine-tuning the Linear layers of a network at one width: torchao's two, and ours from two starts."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_mpq.finetune import FakeQuantization, fake_quantize
from lightning_mpq.groups.candidates import make_candidates
from lightning_mpq.groups.groups import find_groups
from lightning_mpq.modules import stored_bytes
from lightning_mpq.policy import BitPolicy, WeightScheme
from lightning_mpq.quantizers import QuantizedRows
from lightning_mpq.rounding.independent import round_candidates, second_order_schemes

from .networks import Images


class Stored(NamedTuple):
    """Bits per weight of the quantized layers.

    Attributes:
        grid_bits: Codes at their width, and scales.
        held_bits: What the converted layers hold in memory.
    """

    grid_bits: float
    held_bits: float


class Prepared(NamedTuple):
    """A network that is ready to be trained.

    Attributes:
        scales: Learned scales, for an optimizer.
        convert: Ends the training: the network then computes with codes.
    """

    scales: Sequence[nn.Parameter]
    convert: Callable[[], Stored]

    @classmethod
    def in_float(cls, network: nn.Module) -> Prepared:
        """Leave a network as it is."""
        return cls([], lambda: Stored(32.0, 32.0))


def plain_linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the layers that are nn.Linear and nothing more: not the projection inside of attention."""
    return {name: layer for name, layer in network.named_modules() if type(layer) is nn.Linear}


def torchao_dynamic(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Prepare torchao's usual training: scales from the largest weights at each step, straight-through rounding."""
    return _torchao(network, bits, learn_ranges=False)


def torchao_learned(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Prepare torchao's training with learned scales, which it calls range learning and a prototype."""
    return _torchao(network, bits, learn_ranges=True, example=batches[0][0][:2])


def ours_from_torchao(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Fake-quantize with learned scales, from the very codes and scales that torchao starts with."""
    scheme = WeightScheme(bits, grid="symmetric", granularity="channel", scale_dtype="float32")
    rounded = {name: _torchao_rows(weight, scheme) for name, weight in _torchao_weights(network, bits).items()}
    policy = BitPolicy(dict.fromkeys(rounded, scheme))
    return _ours(fake_quantize(network, policy, rounded))


def ours_second_order(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Fake-quantize as the callback does: codes, ranges and grids by the inputs of layers, then learned scales."""
    names = plain_linear_layers(network)
    groups = [group for group in find_groups(network) if set(group.layers) <= set(names)]
    offered = make_candidates(groups, schemes=second_order_schemes([bits]))
    rounded = round_candidates(network, batches, groups, offered)
    policy = BitPolicy({candidate.group: candidate.scheme for candidate in rounded.candidates})
    return _ours(fake_quantize(network, policy, rounded.of_policy(policy)))


WAYS: dict[str, Callable[[nn.Module, int, Images], Prepared]] = {
    "torchao QAT": torchao_dynamic,
    "ours, torchao's start": ours_from_torchao,
    "ours, second-order start": ours_second_order,
    "torchao QAT, learned ranges": torchao_learned,
}


def _ours(handle: FakeQuantization) -> Prepared:
    weights = sum(weight.numel() for weight, _ in handle.weights.values())

    def convert() -> Stored:
        handle.pack()
        bits = 8 * stored_bytes(handle.model).packed / weights
        return Stored(bits, bits)

    return Prepared(list(handle.parameters()), convert)


def _torchao(network: nn.Module, bits: int, learn_ranges: bool, example: Tensor | None = None) -> Prepared:
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


def _torchao_weights(network: nn.Module, bits: int) -> dict[str, Any]:
    """Return the weights of the plain Linear layers as torchao rounds them; the network stays as it is."""
    from torchao.quantization import quantize_

    names = plain_linear_layers(network)
    rounded = copy.deepcopy(network)
    with warnings.catch_warnings(action="ignore"):
        quantize_(rounded, _weight_only(bits), filter_fn=lambda _, name: name in names)
    return {name: rounded.get_submodule(name).weight for name in names}


def _torchao_rows(weight: Any, scheme: WeightScheme) -> QuantizedRows:
    """Return torchao's signed codes and scales in our terms."""
    codes = (weight.qdata.to(torch.int16) + 2 ** (scheme.bits - 1)).to(torch.uint8)
    return QuantizedRows(codes, weight.scale.detach().clone(), None, scheme)
