"""The time of a training step with learned scales over that of a float step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from torch import nn
from torch.optim import SGD

from lightning_mpq import BitPolicy, fake_quantize, find_groups

from ...methods.finetuning import step
from ...problems.default_schemes import default_scheme
from ...problems.trained import TrainedNetworks

REPEATS = 15


def step_ratios(networks: TrainedNetworks, names: Sequence[str], repeats: int = REPEATS) -> dict[str, float]:
    """Return the ratio of each network at 2 bits: medians of interleaved steps, wall time."""
    ratios = {}
    for name in names:
        batch = networks.calibration(0, networks.data(0).batch_size)[0]
        models = {key: networks.network(name, 0).train() for key in ("float", "quantized")}
        quantizing = fake_quantize(models["quantized"], two_bits(models["quantized"]))
        optimizers = {key: SGD(model.parameters(), lr=1e-4, momentum=0.9) for key, model in models.items()}
        optimizers["quantized"].add_param_group({"params": list(quantizing.parameters())})
        seconds: dict[str, list[float]] = {key: [] for key in models}
        for _ in range(repeats):
            for key, model in models.items():
                start = time.perf_counter()
                step(model, batch, optimizers[key])
                seconds[key].append(time.perf_counter() - start)
        ratios[name] = median(seconds["quantized"]) / median(seconds["float"])
    return ratios


def two_bits(model: nn.Module) -> BitPolicy:
    """Return the policy with every layer at 2 bits."""
    layers = {group.name: group.layers for group in find_groups(model)}
    return BitPolicy(dict.fromkeys(layers, default_scheme(2)), layers)
