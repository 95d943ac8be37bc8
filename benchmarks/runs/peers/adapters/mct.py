"""Sony's Model Compression Toolkit, mixed precision of weights, activations in float, BatchNorm folded as it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# isort: off
from ....tools import without_torchvision_ops  # noqa: F401  # before what imports torchvision
import model_compression_toolkit as mct
# isort: on

import numpy as np
import torch
from torch import Tensor, nn

from ..adapting import Found, per_row, run
from ..grid import QuantizedLayer
from ..records import CannotError, Task
from .networks import float_network

BITS = (8, 7, 6, 5, 4, 3, 2)


def quantize(task: Task) -> Found:
    """Return the network; codes, scales and biases of folded layers are said of the layers before folding."""
    net = float_network(task)
    weights = sum(size.rows * size.columns for size in task.layers.values())
    mixed = mct.core.MixedPrecisionQuantizationConfig(num_of_images=min(32, len(task.inputs)))
    plain = mct.core.QuantizationConfig(linear_collapsing=False, residual_collapsing=False)
    made, _ = mct.ptq.pytorch_post_training_quantization(
        net,
        lambda: _samples(task),
        target_resource_utilization=mct.core.ResourceUtilization(weights_memory=weights * task.average_bits / 8),
        core_config=mct.core.CoreConfig(quantization_config=plain, mixed_precision_config=mixed),
        target_platform_capabilities=_platform(),
    )
    wrappers = {name: layer for name, layer in made.named_modules() if hasattr(layer, "weights_quantizers")}
    batchnorms = _batchnorms(net, task)
    layers: dict[str, QuantizedLayer] = {}
    others: dict[str, Tensor] = {}
    for name in task.layers:
        before, folded = name.replace(".", "_"), f"{name.replace('.', '_')}_bn"
        wrapper = wrappers.get(folded, wrappers.get(before))
        if wrapper is None:
            raise CannotError(f"no quantized layer for {name!r} among {', '.join(wrappers)}")
        [(key, quantizer)] = wrapper.weights_quantizers.items()
        bits, weight = int(quantizer.num_bits), wrapper.get_quantized_weights()[key].detach()
        threshold = torch.as_tensor(quantizer.threshold_np).float().flatten()
        scale = threshold.expand(len(weight)) / 2 ** (bits - 1)
        bias = wrapper.layer.bias
        if folded in wrappers:
            batchnorm = batchnorms[name]
            folded_layer: Any = net.get_submodule(batchnorm)
            factor = folded_layer.weight / torch.sqrt(folded_layer.running_var + folded_layer.eps)
            scale, weight = scale / factor, weight / factor.view(-1, *[1] * (weight.dim() - 1))
            others[f"{batchnorm}.bias"] = bias + folded_layer.running_mean * factor
        elif bias is not None:
            others[f"{name}.bias"] = bias
        layers[name] = per_row(weight, bits, scale)
    return Found(layers, {key: value.detach() for key, value in others.items()}, "scores of 32 samples")


def _samples(task: Task) -> Iterator[list[np.ndarray]]:
    for inputs in task.inputs.split(min(task.batch, 32)):
        yield [inputs.numpy()]


def _platform() -> Any:
    """Return the default platform with more widths for kernels, largest first as it wants, and activations in float."""
    capabilities = mct.get_target_platform_capabilities("1.0")
    operators = []
    for operator in capabilities.operator_set:
        if operator.qc_options is not None:
            base = operator.qc_options.base_config.clone_and_edit(enable_activation_quantization=False)
            kernels = [key for key in base.attr_weights_configs_mapping if "kernel" in key]
            offered = (base,)
            if kernels:
                edits = [{kernels[0]: {"weights_n_bits": bits}} for bits in BITS]
                offered = tuple(base.clone_and_edit(attr_to_edit=edit) for edit in edits)
            options = {"quantization_configurations": offered, "base_config": offered[0]}
            operator = operator.model_copy(update={"qc_options": operator.qc_options.model_copy(update=options)})
        operators.append(operator)
    return capabilities.model_copy(update={"operator_set": tuple(operators)})


def _batchnorms(net: nn.Module, task: Task) -> dict[str, str]:
    """Return the BatchNorm layer behind each convolution: the next module in the order of calls."""
    called: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, layer in net.named_modules()
        if name in task.layers or isinstance(layer, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        net(task.inputs[:1])
    for handle in handles:
        handle.remove()
    pairs = zip(called, called[1:], strict=False)
    return {one: two for one, two in pairs if one in task.layers and two not in task.layers}


if __name__ == "__main__":
    run(quantize, ["model-compression-toolkit", "mct-quantizers", "pulp"])
