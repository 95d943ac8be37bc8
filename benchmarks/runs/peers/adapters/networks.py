"""The float network of a task, from packages that every adapter's environment has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ....problems.mobilenet import MobileNet
from ....recorded_instances.wrapped_networks import (
    LanguageModel,
    SentenceEncoder,
    made_up_network,
    with_plain_convolutions,
)
from ..records import Task


def float_network(task: Task) -> nn.Module:
    """Return the network with the task's weights, in eval mode.

    Raises:
        ImportError: If the package is missing that has its layers.
    """
    net = BUILDERS[task.network](dict(task.arguments))
    net.load_state_dict(dict(task.state))
    return net.eval()


def left_in_float(net: nn.Module, task: Task) -> dict[str, nn.Module]:
    """Return the Linear and convolution layers that nobody is to quantize: heads that share an embedding's weight."""
    kinds = (nn.Linear, nn.Conv2d)
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, kinds) and name not in task.layers}


def outputs(net: nn.Module, task: Task) -> list[Tensor]:
    """Return what a network says of the calibration samples, in batches."""
    with torch.no_grad():
        return [net(inputs) for inputs in task.inputs.split(task.batch)]


def _resnet20(arguments: dict[str, Any]) -> nn.Module:
    """Load the file by itself: the package around it needs Lightning."""
    path = Path(__file__).parents[4] / "lightning_mpq" / "demo" / "resnet.py"
    spec = importlib.util.spec_from_file_location("resnet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.ResNet(**arguments)
    return net


def _mobilenet(arguments: dict[str, Any]) -> nn.Module:
    return MobileNet(**arguments)


def _minilm(arguments: dict[str, Any]) -> nn.Module:
    from transformers import BertConfig, BertModel

    configuration = BertConfig(**{**arguments, "attn_implementation": "eager"})
    return SentenceEncoder(BertModel(configuration, add_pooling_layer=False))


def _smollm2(arguments: dict[str, Any]) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LanguageModel(LlamaForCausalLM(LlamaConfig(**{**arguments, "attn_implementation": "eager"})))


def _efficientnet_lite0(arguments: dict[str, Any]) -> nn.Module:
    from efficientnet_lite_pytorch import EfficientNet

    return with_plain_convolutions(EfficientNet.from_name("efficientnet-lite0"))


BUILDERS = {
    "resnet20": _resnet20,
    "mobilenet": _mobilenet,
    "minilm": _minilm,
    "efficientnet_lite0": _efficientnet_lite0,
    "smollm2": _smollm2,
    "made_up": lambda _: made_up_network(),
}
"""Name of a network to what makes it, with weights of any values."""
