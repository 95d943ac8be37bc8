"""Our fake quantization with learned scales, from two starts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lightning_mpq import BitPolicy, WeightScheme, fake_quantize, find_groups, make_candidates, round_candidates
from lightning_mpq.finetune import FakeQuantization
from lightning_mpq.modules import stored_bytes
from lightning_mpq.quantizers import QuantizedRows

from ...tools.accuracy import Images
from .prepared import Prepared, Stored, plain_linear_layers
from .torchao import torchao_weights


def ours_from_torchao(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Fake-quantize with learned scales, from the very codes and scales that torchao starts with."""
    scheme = WeightScheme(bits, grid="symmetric", granularity="channel", scale_dtype="float32")
    rounded = {name: _torchao_rows(weight, scheme) for name, weight in torchao_weights(network, bits).items()}
    return _prepared(fake_quantize(network, BitPolicy(dict.fromkeys(rounded, scheme)), rounded))


def ours_second_order(network: nn.Module, bits: int, batches: Images) -> Prepared:
    """Fake-quantize as the callback does: codes, ranges and grids by the inputs of layers, then learned scales."""
    names = set(plain_linear_layers(network))
    groups = [group for group in find_groups(network) if set(group.layers) <= names]
    rounded = round_candidates(network, batches, groups, make_candidates(groups, [bits]))
    policy = BitPolicy({candidate.group: candidate.scheme for candidate in rounded.candidates})
    return _prepared(fake_quantize(network, policy, rounded.of_policy(policy)))


def _prepared(handle: FakeQuantization) -> Prepared:
    weights = sum(weight.numel() for weight, _ in handle.weights.values())

    def convert() -> Stored:
        handle.pack()
        bits = 8 * stored_bytes(handle.model).packed / weights
        return Stored(bits, bits)

    return Prepared(list(handle.parameters()), convert)


def _torchao_rows(weight: Any, scheme: WeightScheme) -> QuantizedRows:
    """Return torchao's signed codes and scales in our terms."""
    codes = (weight.qdata.to(torch.int16) + 2 ** (scheme.bits - 1)).to(torch.uint8)
    return QuantizedRows(codes, weight.scale.detach().clone(), None, scheme)
