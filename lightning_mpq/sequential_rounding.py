"""Rounding layer by layer: each one makes up for what the rounding of earlier layers did to its inputs.

With x the inputs of a layer in the float model and z those behind the layers rounded so far, the layer is rounded to
W', the weight with the least mean of |W x - W' z|^2, by the second moment of z. Feeding z to error feedback alone, as
GPTQ does, aims at W z and so keeps the errors that came in; aiming at W x takes them back (J. Zhang, Y. Zhou, R. Saab,
"Post-training Quantization for Neural Networks with Provable Guarantees", arXiv:2201.11113).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .calling import ForwardFn, forward_batch
from .curvature.isolation import isolated
from .layers import float_class, rows_to_weight, weight_rows
from .policy import BitPolicy, WeightScheme
from .quantizers import QuantizedRows, round_rows
from .quantizers.input_moments import unfolded_chunks
from .rounding import round_policy

Progress = Callable[[float, str], None]


def round_sequentially(
    model: nn.Module,
    batches: Sequence[Any],
    policy: BitPolicy,
    *,
    damping: float = 0.01,
    forward_fn: ForwardFn | None = None,
    progress: Progress | None = None,
) -> dict[str, QuantizedRows]:
    """Round the layers of a policy in the order in which they are called; for ``pack_model(rounded=)``.

    Every layer takes a pass through the float model and one through a copy that is rounded so far, both cut short at
    the layer. Embeddings, layers that share a weight and layers that are called several times in one pass are rounded
    by their inputs in the float model, as `round_policy` does.

    Args:
        model: The float model, left as it was.
        batches: Calibration batches.
        policy: The schemes; all of them are rounded by error feedback, whatever they say of rounding.
        damping: Added to the diagonal of z's moment, as a part of its mean: it draws W' towards W, and is the damping
            of `ErrorFeedback.factorise`.
        forward_fn: ``(model, batch) -> outputs``; by default the model is called on the batch's inputs.
        progress: Called with the fraction done and a message.

    Returns:
        Layer name to rounded weight, in the policy's schemes.

    Raises:
        ValueError: If there is no batch, or policy and model do not fit.
        NonFiniteError: If a weight or an input is NaN or infinite.
    """
    schemes = policy.by_layer()
    rounded = round_policy(model, batches, policy, damping=damping, forward_fn=forward_fn)
    if not len(batches):
        raise ValueError("Sequential rounding needs at least one calibration batch, got none.")
    order = _order_of_calls(model, batches[0], list(schemes), forward_fn)
    twin = copy.deepcopy(model)
    for layer, quantized in rounded.items():
        if layer not in order:
            _set_weight(twin.get_submodule(layer), quantized)
    for number, layer in enumerate(order):
        if progress is not None:
            progress(number / len(order), f"round {layer} behind {number} rounded layers")
        moments = _joint_moments(model, twin, layer, batches, forward_fn)
        rounded[layer] = _round_to_float_outputs(model.get_submodule(layer), moments, schemes[layer], damping)
        _set_weight(twin.get_submodule(layer), rounded[layer])
    return rounded


class _AtTheLayer(Exception):
    """Ends a forward pass at the layer that is looked at."""


def _order_of_calls(model: nn.Module, batch: Any, layers: Sequence[str], forward_fn: ForwardFn | None) -> list[str]:
    """Return the layers that can be rounded in sequence, in the order of their calls."""
    calls: list[str] = []
    modules = {name: model.get_submodule(name) for name in layers}
    handles = []
    try:
        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(lambda module, args, name=name: calls.append(name)))
        with isolated(model), torch.no_grad():
            forward_batch(model, batch, forward_fn)
    finally:
        for handle in handles:
            handle.remove()
    weights = [id(module._parameters.get("weight")) for module in model.modules()]
    return [
        name
        for name in calls
        if calls.count(name) == 1
        and weights.count(id(modules[name].weight)) == 1
        and float_class(modules[name]) is not nn.Embedding
    ]


def _set_weight(module: nn.Module, quantized: QuantizedRows) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(rows_to_weight(module, quantized.dequantize(weight.dtype), weight.shape))


def _joint_moments(
    model: nn.Module, twin: nn.Module, layer: str, batches: Sequence[Any], forward_fn: ForwardFn | None
) -> tuple[Tensor, Tensor]:
    """Return the means of x z^T and z z^T, [groups, columns, columns], with x from the model and z from its twin."""
    module = model.get_submodule(layer)
    cross = own = torch.zeros(())
    count = 0
    with isolated(model), isolated(twin), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            calls = [_call_of(which, layer, batch, forward_fn, number) for which in (model, twin)]
            chunks = [unfolded_chunks(module, inputs, shape) for inputs, shape in calls]
            for x, z in zip(*chunks, strict=True):
                wide = torch.float32 if x.device.type == "mps" else torch.float64
                cross = (x.mT @ z).to(wide) + cross.to(x.device)
                own = (z.mT @ z).to(wide) + own.to(x.device)
                count += z.shape[1]
    return cross / max(count, 1), own / max(count, 1)


def _call_of(
    model: nn.Module, layer: str, batch: Any, forward_fn: ForwardFn | None, number: int
) -> tuple[Tensor, torch.Size]:
    """Return the inputs of a layer on a batch, and the shape of its output."""
    seen: list[tuple[Tensor, torch.Size]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen.append(((args[0] if args else kwargs["input"]).detach(), output.shape))
        raise _AtTheLayer

    handle = model.get_submodule(layer).register_forward_hook(stop, with_kwargs=True)
    try:
        forward_batch(model, batch, forward_fn, number=number)
    except _AtTheLayer:
        pass
    finally:
        handle.remove()
    if not seen:
        raise ValueError(f"Layer {layer!r} is called on the first batch, but not on batch {number}; leave it in float.")
    return seen[0]


def _round_to_float_outputs(
    module: nn.Module, moments: tuple[Tensor, Tensor], scheme: WeightScheme, damping: float
) -> QuantizedRows:
    """Round W' = (W X + d W) (M + d I)^-1 with X = mean of x z^T and M = mean of z z^T; in the given scheme."""
    cross, own = moments
    rows = weight_rows(module).detach()
    weights = rows.unflatten(0, (len(own), -1)).to(own.dtype)
    mean = own.diagonal(dim1=1, dim2=2).mean(1)
    shift = damping * torch.where(mean > 0, mean, torch.ones_like(mean))[:, None, None]
    identity = torch.eye(own.shape[1], dtype=own.dtype, device=own.device)
    target = torch.linalg.solve(own + shift * identity, weights @ cross + shift * weights, left=False)
    feedback = replace(scheme, rounding="second_order")
    found = round_rows(target.flatten(0, 1).to(rows.dtype), own, [feedback], damping=damping)[0].quantized
    return replace(found, scheme=scheme)
