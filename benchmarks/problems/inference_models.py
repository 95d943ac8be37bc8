"""The models that the inference benchmarks run, and inputs for them."""

from __future__ import annotations

import copy
import re

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_mpq import BitPolicy, find_groups
from lightning_mpq.modules import pack_model

from .default_schemes import default_scheme
from .recipes import untrained_module
from .trained import EPOCHS, weights_file

MODELS = ("linear-1024x4096", "12 x linear-1024x4096", "linear-4096x4096", "resnet20")
"""A Linear layer is named by outputs and inputs. One that is called again and again finds its weight in the cache if
the cache is large enough; twelve in turns, 192 MiB in float32, read theirs from memory as the layers of a model do."""


class Together(nn.ModuleList):
    """Layers that take the same inputs; their outputs are concatenated."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return all outputs."""
        return torch.cat([layer(inputs) for layer in self], dim=-1)


def make_model(name: str) -> nn.Module:
    """Return a model in eval mode; a ResNet-20 has random weights, which change no time, where none are trained."""
    torch.manual_seed(0)
    if shape := linear_shape(name):
        count, rows, columns = shape
        return Together(nn.Linear(columns, rows) for _ in range(count)).eval()
    module = untrained_module(name, seed=0)
    path = weights_file(name, 0, EPOCHS)
    if path.exists():
        module.load_state_dict(load_file(path))
    return module.network.eval()


def packed_model(model: nn.Module, bits: int) -> nn.Module:
    """Return a packed copy with `default_scheme` of a width on every layer."""
    net = copy.deepcopy(model)
    layers = {group.name: group.layers for group in find_groups(net)}
    pack_model(net, BitPolicy(dict.fromkeys(layers, default_scheme(bits)), layers))
    return net


def make_inputs(name: str, batch: int) -> Tensor:
    """Return inputs of a model."""
    generator = torch.Generator().manual_seed(1)
    shape = linear_shape(name)
    return torch.randn(batch, *((1, 28, 28) if shape is None else (shape[2],)), generator=generator)


def linear_shape(name: str) -> tuple[int, int, int] | None:
    """Return how many Linear layers a model has, their outputs and their inputs; None for a network."""
    found = re.fullmatch(r"(?:(\d+) x )?linear-(\d+)x(\d+)", name)
    return None if found is None else (int(found[1] or 1), int(found[2]), int(found[3]))
