"""NNCF's weight compression: one width everywhere, a symmetric scale a row, scales estimated from the samples."""

from __future__ import annotations

from typing import Any

import nncf
import torch
from nncf.torch.function_hook.wrapper import get_hook_storage
from torch import nn

from ..adapting import Found, per_row, run, widest_uniform
from ..records import CannotError, Task
from .networks import float_network

MODES = {8: nncf.CompressWeightsMode.INT8_SYM, 4: nncf.CompressWeightsMode.INT4_SYM}


def quantize(task: Task) -> Found:
    """Return the network at the larger of its widths that fits.

    Raises:
        CannotError: If 4 bits do not fit.
    """
    fits = widest_uniform(task)
    if fits < min(MODES):
        raise CannotError("has 4 and 8 bits only for torch: its modes of 2 and 3 end with an UnboundLocalError")
    bits = max(width for width in MODES if width <= fits)
    net = float_network(task)
    kept = [f"{name.replace('.', '/')}/.*" for name, layer in net.named_modules() if isinstance(layer, nn.Embedding)]
    everywhere = {"group_size": -1, "ratio": 1.0, "all_layers": True, "scale_estimation": True}
    made = nncf.compress_weights(
        net,
        mode=MODES[bits],
        dataset=nncf.Dataset(task.inputs.split(task.batch)),
        subset_size=len(task.inputs),  # counted in batches: all of them
        ignored_scope=nncf.IgnoredScope(patterns=kept),
        **({} if bits == 8 else everywhere),  # 8 bits are a scale a row always, and take no samples
    )
    layers = {}
    for key, hooks in get_hook_storage(made).post_hooks.items():
        name = key.split("__")[0].replace(":", ".").removesuffix(".weight")
        if name in task.layers:
            [decompress] = hooks.values()
            layer: Any = made.get_submodule(name)
            with torch.no_grad():
                weight = decompress(layer.weight)
            layers[name] = per_row(weight, bits, decompress._scale.flatten())
    return Found(layers)


if __name__ == "__main__":
    run(quantize, ["nncf"])
