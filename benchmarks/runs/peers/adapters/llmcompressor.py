"""llm-compressor's GPTQ: one width everywhere, a symmetric scale a row, layers in the order of the network."""

from __future__ import annotations

from tempfile import TemporaryDirectory
from typing import Any

from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from torch.utils.data import DataLoader

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task
from .networks import float_network


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits."""
    net, bits = float_network(task), widest_uniform(task)
    encoder: Any = net.get_submodule("encoder")
    weights = QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="channel")
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    rows = [{"input_ids": row, "attention_mask": (row != 0).long()} for row in task.inputs]
    with TemporaryDirectory() as folder:
        encoder.config.save_pretrained(folder)
        encoder.config._name_or_path = folder  # where it looks the configuration up once more
        oneshot(
            model=encoder,
            processor=object(),  # samples are tokens already: no tokenizer is looked for
            dataset=DataLoader(rows, batch_size=task.batch),  # type: ignore[arg-type]
            recipe=GPTQModifier(config_groups={"group_0": scheme}),
            num_calibration_samples=len(rows),
            shuffle_calibration_samples=False,
            sequential_targets=["BertLayer"],
        )
    layers = {}
    for name in task.layers:
        layer: Any = net.get_submodule(name)
        layers[name] = per_row(layer.weight, bits, layer.weight_scale.flatten())
    return Found(layers)


if __name__ == "__main__":
    run(quantize, ["llmcompressor", "compressed-tensors"])
