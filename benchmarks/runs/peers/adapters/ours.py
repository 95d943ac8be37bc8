"""This package, as its callback does it by default."""

from __future__ import annotations

import torch
from torch import nn

from lightning_mpq import Budget, CandidateOptions, Categorical, CurvatureOptions, Gaussian, Likelihood
from lightning_mpq.modules import packed_layers
from lightning_mpq.modules.packed import PackedLayer
from lightning_mpq.pipeline.pipeline import Pipeline
from lightning_mpq.pipeline.settings import JobSettings

from ..adapting import Found, run
from ..grid import QuantizedLayer
from ..records import Task
from .networks import float_network, left_in_float


def quantize(task: Task) -> Found:
    """Return the network that a job with default settings makes."""
    net = float_network(task)
    weights = sum(size.rows * size.columns for size in task.layers.values())
    settings = JobSettings(
        Budget(8 * task.budget_bytes / weights),
        candidates=CandidateOptions(keep_float=floats(net, task)),
        curvature=CurvatureOptions(likelihood=likelihood(task), seed=task.seed),
    )
    Pipeline(settings).run(net, list(task.inputs.split(task.batch)))
    return packed(net, task)


def likelihood(task: Task) -> Likelihood:
    """Return what a task's outputs mean."""
    return Categorical() if task.variance is None else Gaussian(task.variance)


def floats(net: nn.Module, task: Task) -> list[str]:
    """Return the layers that stay in float."""
    tables = [name for name, layer in net.named_modules() if isinstance(layer, nn.Embedding)]
    return [*tables, *left_in_float(net, task)]


def packed(net: nn.Module, task: Task) -> Found:
    """Return what a packed network holds."""
    layers = {name: of_packed(layer) for name, layer in packed_layers(net).items()}
    changed = {
        key: value
        for key, value in net.state_dict().items()
        if key in task.state and not torch.equal(value, task.state[key])
    }
    return Found(layers, changed)


def of_packed(layer: PackedLayer) -> QuantizedLayer:
    """Return a packed layer in the words of the exchange.

    Raises:
        ValueError: If its grid is not one of equal steps.
    """
    scheme = layer.scheme
    middle = {"symmetric": 2.0 ** (scheme.bits - 1), "half": 2.0 ** (scheme.bits - 1) - 0.5}
    if scheme.grid not in (*middle, "asymmetric"):
        raise ValueError(f"The grid {scheme.grid!r} has no equal steps.")
    zero = torch.tensor([middle[scheme.grid]]) if layer.zero_point is None else layer.zero_point.float()
    columns = layer.row_shape[1]
    block = scheme.granularity if isinstance(scheme.granularity, int) else columns
    return QuantizedLayer(layer.dequantize(), scheme.bits, layer.scale.float(), zero, min(block, columns))


if __name__ == "__main__":
    run(quantize, ["mip", "highspy"])
