"""What a forward pass takes beside stored weights, counted by hooks in one pass over one batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from ..allocation import Budget
from ..allocation.workload import Workload
from ..groups.candidates import Candidate
from ..groups.groups import LayerGroup, LayerGroups
from ..network.batches import tensors_of
from ..network.caching import caching
from ..network.calibration import Calibration
from ..network.hooks import hooked
from ..network.isolation import isolated
from ..network.layer_calls import LayerCall, watched
from ..network.layer_kinds import kind_of, weight_rows
from ..network.named_weights import held_by, named_layers
from .kernel_bytes import kernel_bytes
from .kernels import PLAIN, check_kernel_name
from .pass_scale import PassScale, piece_of


def measured(
    budget: Budget,
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    groups: LayerGroups | Sequence[LayerGroup],
    candidates: Sequence[Candidate] = (),
) -> Budget:
    """Return a budget with what a forward pass takes, where its bounds need that; else as it is.

    Args:
        budget: The budget.
        model: The float model; it is left as it was.
        batches: Calibration batches, of which the first is used.
        groups: What `find_groups` returned.
        candidates: What may be chosen, for the layouts of ``budget.kernel``.
    """
    if not budget.needs_workload:
        return budget
    found = measure_workload(
        model,
        batches,
        groups,
        candidates=candidates,
        context=budget.context,
        batch=budget.batch or 1,
        kernel=budget.kernel,
    )
    return replace(budget, workload=found)


def measure_workload(
    model: nn.Module,
    batches: Iterable[Any] | Calibration,
    groups: LayerGroups | Sequence[LayerGroup],
    *,
    candidates: Sequence[Candidate] = (),
    context: int | None = None,
    batch: int = 1,
    kernel: str = PLAIN,
) -> Workload:
    """Count multiply-accumulates, activations, keys and values of one forward pass, and what kernels keep.

    The largest activation is what one module gets, returns and, if it dequantizes its weight, holds of that, at most.
    Keys and values are those that the model returns (``past_key_values``). For a ``context`` the pass is over a short
    piece of the first sample, and dimensions of its length count as long as the context.

    Args:
        model: The float model; it is left as it was.
        batches: Calibration batches, of which the first is used.
        groups: What `find_groups` returned.
        candidates: What may be chosen, for the layouts of the kernel.
        context: Positions of a sequence, dimension 1 of the batch; None: those of the batch.
        batch: Samples at once, for activations, keys and values.
        kernel: What multiplies by packed Linear layers.

    Raises:
        ValueError: If there is no batch, no such kernel, or a context is asked for of a batch without positions.

    Example:
        >>> from lightning_mpq import find_groups
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> work = measure_workload(net, [torch.zeros(5, 8)], find_groups(net))
        >>> work.macs, work.activation_bytes  # 4 * (8 + 16) bytes and the first weight, 4 * 8 * 16
        ({'0': 128.0, '2': 64.0}, 608.0)
    """
    check_kernel_name(kernel)
    calibration = Calibration.of(model, batches)
    first = next(iter(calibration.filled()), None)
    if first is None:
        raise ValueError("A forward pass is to be measured, but there is no batch; give at least one.")
    named = named_layers(model, remove_duplicate=False)
    layers = {name: named[name] for group in groups for name in group.layers}
    kept = kernel_bytes(layers, groups, candidates, kernel)
    taken = {candidate.group for candidate in candidates} - {
        candidate.group for candidate in candidates if (candidate.group, str(candidate.scheme)) not in kept
    }
    dequantized: dict[nn.Module, float] = {}
    for group in groups:
        if group.name not in taken:
            for name in group.layers:
                if _gathers_rows(layers[name]):
                    continue
                owner, weight = held_by(layers[name])[0], layers[name].weight
                assert isinstance(weight, Tensor)
                dequantized[owner] = dequantized.get(owner, 0.0) + weight.numel() * weight.element_size()
    piece, scale = piece_of(first, batch, context, {size for p in model.parameters() for size in p.shape})
    macs: dict[str, float] = {}
    most, cache = 0.0, 0.0

    def on_call(call: LayerCall, output: Tensor) -> Tensor:
        macs[call.layer] = macs.get(call.layer, 0.0) + _macs(layers[call.layer], call.inputs, output, scale)
        return output

    def on_module(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal most, cache
        cache = max(cache, scale.bytes(_keys_and_values(output)))
        if not any(True for _ in module.children()) or module in dequantized:
            own = scale.bytes(tensors_of([args, kwargs, output]))
            most = max(most, own + dequantized.get(module, 0.0))

    every = [(module, on_module) for module in model.modules()]
    with (
        isolated(model),
        torch.no_grad(),
        caching(model, use_cache=True),
        watched(model, layers, on_call),
        hooked(every, with_kwargs=True),
    ):
        calibration.forward(piece)
    counted = {
        group.name: sum(macs[name] for name in group.layers) / batch
        for group in groups
        if all(name in macs for name in group.layers)
    }
    return Workload(counted, most, cache, kept)


def _macs(layer: nn.Module, inputs: Tensor, output: Tensor, scale: PassScale) -> float:
    """Return the multiply-accumulates of one use of a weight."""
    operation = _operation(layer)
    if operation == "lookup":
        return 0.0
    if operation == "transposed":  # every input meets the outputs of its group
        assert isinstance(layer.weight, Tensor)
        return scale.elements(inputs) * prod(layer.weight.shape[1:])
    return scale.elements(output) * weight_rows(layer).shape[1]


def _operation(layer: nn.Module) -> str | None:
    kind = kind_of(layer)
    return None if kind is None else kind.operation


def _gathers_rows(layer: nn.Module) -> bool:
    """Tell whether a lookup dequantizes the rows that it is asked for alone, whatever the width of their codes."""
    plain = getattr(layer, "max_norm", None) is None and weight_rows(layer).shape[1] % 8 == 0
    return _operation(layer) == "lookup" and plain


def _keys_and_values(output: Any) -> list[Tensor]:
    """Return the keys and values that a module returned, whatever kind of cache holds them."""
    cache = output.get("past_key_values") if isinstance(output, Mapping) else getattr(output, "past_key_values", None)
    if cache is None:
        return []
    found = tensors_of(cache)
    for layer in getattr(cache, "layers", ()):
        found += [part for name in ("keys", "values") if isinstance(part := getattr(layer, name, None), Tensor)]
    return found
