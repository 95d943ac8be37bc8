"""llm-compressor's GPTQ: one width everywhere, a symmetric scale a row, layers in the order of the network."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch import Tensor
from torch.utils.data import DataLoader

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task
from .networks import float_network

PARTS = {"minilm": ("encoder", "BertLayer"), "smollm2": ("model", "LlamaDecoderLayer")}
"""Network to where the model of transformers is in it, and the class of its blocks."""


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits."""
    net, bits = float_network(task), widest_uniform(task)
    inside, block = PARTS[task.network]
    model: Any = net.get_submodule(inside)
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rows = [{"input_ids": row, "attention_mask": mask(task, row)} for row in task.inputs]
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        model.config._name_or_path = folder  # where it looks the configuration up once more
        oneshot(
            model=model,
            processor=object(),  # samples are tokens already: no tokenizer is looked for
            dataset=DataLoader(rows, batch_size=task.batch),  # type: ignore[arg-type]
            recipe=GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]),
            num_calibration_samples=len(rows),
            shuffle_calibration_samples=False,
            sequential_targets=[block],
        )
    layers = {}
    for name in task.layers:
        layer: Any = net.get_submodule(name)
        layers[name] = per_row(layer.weight, bits, layer.weight_scale.flatten())
    return Found(layers)


def mask(task: Task, tokens: Tensor) -> Tensor:
    """Return which tokens count: of the encoder those that are no padding."""
    return (tokens != 0).long() if task.network == "minilm" else torch.ones_like(tokens)


if __name__ == "__main__":
    run(quantize, ["llmcompressor", "compressed-tensors"])
