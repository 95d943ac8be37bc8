"""Milliseconds of every layer group under every scheme, measured on the packed layers themselves."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import LatencyTable
from ..groups.groups import LayerGroups, find_groups
from ..network.batches import to_device
from ..network.forward import device_of
from ..network.isolation import isolated
from ..network.layer_calls import LayerCall, watched
from ..network.layer_kinds import ParameterView, kind_of, weight_rows
from ..network.named_weights import named_layers
from ..quantizers import quantize_rows
from ..schemes import WeightScheme
from ..tools.kinds import checked_kinds
from . import pack_layer

Call = tuple[tuple[Any, ...], dict[str, Any]]


@checked_kinds
def measure_latency(
    model: nn.Module,
    schemes: Iterable[WeightScheme],
    device: str | torch.device | None = None,
    *,
    inputs: tuple[Any, ...],
    groups: LayerGroups | None = None,
    repeats: int = 5,
) -> LatencyTable:
    """Time the packed twin of every layer under every scheme, on the inputs that it sees in the model.

    One forward pass records what reaches each layer; each twin then runs on that, and the least of several
    runs counts. The model is left as it is. Latencies of layers add up only where layers run one after the
    other and the kernels are what takes the time; the sum is a model, the table says what was measured.

    Args:
        model: A float model.
        schemes: What may be chosen; only width, granularity and grid matter for the time.
        device: Where to time; where the model is, by default.
        inputs: Positional arguments of one forward pass, such as a batch of the size that will be served.
        groups: What `find_groups` returned; one group a layer by default.
        repeats: Runs per layer and scheme, of which the fastest counts.

    Returns:
        (group, scheme) to milliseconds, summed over the layers of the group and their uses in one pass.

    Raises:
        ValueError: If there is no scheme, repeats is not positive, a layer is not used in the pass, or a weight is
            used only together with others, as those of recurrent layers are.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> table = measure_latency(net, [WeightScheme(3), WeightScheme(8)], inputs=(torch.zeros(2, 8),), repeats=1)
        >>> [group for group, _ in table.entries]
        ['0', '0', '2', '2']
        >>> from lightning_mpq import Budget
        >>> budget = Budget(average_bits=4, latency=1.0, latency_table=table)  # milliseconds in all
    """
    offered = list(dict.fromkeys(schemes))
    if not offered or repeats < 1:
        raise ValueError(f"Expected at least one scheme and one repeat, got {len(offered)} and {repeats}.")
    groups = find_groups(model) if groups is None else groups
    known = named_layers(model, remove_duplicate=False)
    layers = {name: known[name] for group in groups for name in group.layers}
    if alone := sorted(name for name, layer in layers.items() if _only_within_its_module(layer)):
        raise ValueError(
            f"The weights {', '.join(alone)} are not used by a call of their own that could be timed. Leave them out "
            "by find_groups(keep_float=...), or make a LatencyTable of milliseconds measured on the whole module."
        )
    calls = _recorded_calls(model, layers, inputs)
    if unused := sorted(name for name in layers if not calls[name]):
        raise ValueError(f"The forward pass does not use {', '.join(unused)}; give inputs that reach every layer.")
    where = torch.device(device) if device is not None else device_of(model)
    entries: dict[tuple[str, str], float] = {}
    for group in groups:
        for scheme in offered:
            if scheme.bits in group.bits:
                seconds = sum(_fastest(layers[name], scheme, calls[name], where, repeats) for name in group.layers)
                entries[group.name, str(scheme)] = 1e3 * seconds
    return LatencyTable(entries)


def _only_within_its_module(layer: nn.Module) -> bool:
    """Tell whether a weight works only together with others of its module, as those of recurrent layers do."""
    kind = kind_of(layer)
    return isinstance(layer, ParameterView) and (kind is None or kind.operation != "linear")


def _recorded_calls(model: nn.Module, layers: dict[str, nn.Module], inputs: tuple[Any, ...]) -> dict[str, list[Call]]:
    """Run the model once in eval mode and return the arguments of every call of every layer."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}

    def record(call: LayerCall, output: Tensor) -> Tensor:
        calls[call.layer].append(((call.inputs, *call.extra), dict(call.options)))
        return output

    with isolated(model), torch.no_grad(), watched(model, layers, record):
        model(*inputs)
    return calls


def _fastest(layer: nn.Module, scheme: WeightScheme, calls: list[Call], device: torch.device, repeats: int) -> float:
    """Return the least seconds that a layer's packed twin takes for all its calls in one pass."""
    plain = replace(scheme, clip="absmax", rounding="nearest")
    weight = layer.weight
    assert isinstance(weight, Tensor)
    twin = pack_layer(layer, quantize_rows(weight_rows(layer, weight.detach()), plain)).to(device).eval()
    moved = [(to_device(args, device), to_device(kwargs, device)) for args, kwargs in calls]
    best = float("inf")
    with torch.no_grad():
        for run in range(repeats + 1):
            _wait_for(device)
            begin = time.perf_counter()
            for args, kwargs in moved:
                twin(*args, **kwargs)
            _wait_for(device)
            if run:  # the first warms caches up
                best = min(best, time.perf_counter() - begin)
    return best


def _wait_for(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
