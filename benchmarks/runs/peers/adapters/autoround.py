"""AutoRound's sign-gradient descent: one width everywhere, a symmetric scale a row, block after block."""

from __future__ import annotations

from typing import Any

from auto_round import AutoRound
from torch import nn

from ..adapting import Found, per_row, run, widest_uniform
from ..records import Task
from .networks import float_network


def quantize(task: Task) -> Found:
    """Return the network at the largest width that fits, by the option ``iterations``: steps for each block."""
    net, bits = float_network(task), widest_uniform(task)
    model: Any = net.get_submodule("model")
    tuned = AutoRound(
        model=model,
        tokenizer=nothing,
        bits=bits,
        group_size=-1,
        sym=True,
        iters=task.options["iterations"],
        nsamples=len(task.inputs),
        seqlen=task.inputs.shape[1],
        batch_size=task.batch,
        dataset=[{"input_ids": rows} for rows in task.inputs.split(1)],
        seed=task.seed,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    tuned.quantize()
    layers = {}
    for name in task.layers:
        layer: nn.Module = net.get_submodule(name)
        layers[name] = per_row(layer.weight, bits, layer.scale.flatten())  # type: ignore[arg-type, operator]
    return Found(layers, note=f"{task.options['iterations']} steps a block")


def nothing(*_: Any, **__: Any) -> Any:
    """Stand in for a tokenizer: samples are tokens already."""
    raise AssertionError("no text is read")


if __name__ == "__main__":
    run(quantize, ["auto-round"])
