"""Layers packed by a policy and brought back: after a while, or if something fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from ..inputs.quantizer import InputRange
from ..modules import pack_model, restore_layers
from ..network.batchnorm import batchnorm_layers
from ..network.named_weights import named_layers
from ..policy import BitPolicy
from ..quantizers import QuantizedRows
from ..repair.batchnorm import restore_statistics, save_statistics
from ..tools.clean_up import after_errors, afterwards


@contextmanager
def temporarily_packed(
    model: nn.Module,
    policy: BitPolicy,
    codes: Mapping[str, QuantizedRows] | None = None,
    ranges: Mapping[str, InputRange] | None = None,
) -> Iterator[None]:
    """Pack the layers of a policy for the time of a ``with`` block; afterwards the float model is there again."""
    with afterwards(_bringing_back(model, policy)):
        pack_model(model, policy, codes, ranges)
        yield


@contextmanager
def packed_unless_it_fails(
    model: nn.Module,
    policy: BitPolicy,
    codes: Mapping[str, QuantizedRows] | None = None,
    ranges: Mapping[str, InputRange] | None = None,
) -> Iterator[None]:
    """Pack the layers of a policy for good; an error in the ``with`` block brings the float model back."""
    with after_errors(_bringing_back(model, policy)):
        pack_model(model, policy, codes, ranges)
        yield


def _bringing_back(model: nn.Module, policy: BitPolicy) -> Callable[[], None]:
    """Return a function that brings the present layers of a policy, their biases and BatchNorm statistics back."""
    layers = batchnorm_layers(model)
    statistics = save_statistics(layers)
    modules = named_layers(model, remove_duplicate=False)
    floats = {name: modules[name] for name in policy.by_layer() if name in modules}
    owners = floats.values()
    biases = {bias: bias.detach().clone() for owner in owners if (bias := owner._parameters.get("bias")) is not None}

    def undo() -> None:
        restore_layers(model, floats)
        restore_statistics(layers, statistics)
        with torch.no_grad():
            for bias, before in biases.items():
                bias.copy_(before)

    return undo
